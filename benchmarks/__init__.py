"""Measurements, as ratios of things run side by side. `python -m benchmarks` runs them all."""
