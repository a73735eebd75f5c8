"""Runs every benchmark; the arguments are those of `benchmarks.steps`."""

from benchmarks import steps

steps.main()
