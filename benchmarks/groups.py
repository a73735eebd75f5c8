"""The groups of rows: the function that measures each, the files that it measures, and an estimate of its time."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from benchmarks import (
    callbacks,
    checkpoints,
    cpu_kernels,
    feeding,
    long_fit,
    resident,
    second_model,
    short_calls,
    startup,
    structure,
    training,
    zoo,
)
from benchmarks.problems import CPU, GPU
from benchmarks.rows import Row

LOOPS = ("resfit/trainer", "resfit/data", "resfit/callbacks")
STEPS = (*LOOPS, "resfit/losses", "resfit/metrics", "resfit/optimizers", "resfit/nets")
KERNELS = (*STEPS, "resfit/backends")


class Group(NamedTuple):
    """Rows that are measured together.

    Attributes:
      rows: a function of (platform, quick).
      files: the files and folders of resfit whose change makes the rows old.
      minutes: an estimate for two quiet cores, without a GPU.
    """

    rows: Callable[[str, bool], list[Row]]
    files: tuple[str, ...]
    minutes: float


MINUTES = {
    "resnet20": 3.6, "tiny": 2.3, "resnet50": 5.0,
    "cpu_resnet20": 2.4, "cpu_resnet18": 3.6, "cpu_resnet50": 4.2, "cpu_tiny": 1.4,
}  # fmt: skip

GROUPS: dict[str, Group] = {
    **{name: Group(functools.partial(training.rows, name), STEPS, MINUTES[name]) for name in GPU},
    **{
        f"cpu_{name}": Group(functools.partial(cpu_kernels.rows, name), KERNELS, MINUTES[f"cpu_{name}"])
        for name in CPU
        if f"cpu_{name}" in MINUTES
    },
    "resident": Group(resident.rows, STEPS, 0),
    "long_fit": Group(long_fit.rows, STEPS, 0),
    "host": Group(structure.host_rows, LOOPS, 0.5),
    "short_calls": Group(short_calls.rows, (*LOOPS, "resfit/model.py"), 0.8),
    "feeding": Group(feeding.rows, LOOPS, 1.7),
    "compilations": Group(structure.compilation_rows, (*STEPS, "resfit/backends"), 0.3),
    "devices": Group(structure.device_rows, ("resfit/trainer", "resfit/nets"), 1.0),
    "callbacks": Group(callbacks.rows, ("resfit/callbacks", "resfit/trainer/loop"), 1.3),
    "checkpoints": Group(checkpoints.rows, ("resfit/trainer/checkpoint", "resfit/trainer/state"), 1.7),
    "startup": Group(startup.rows, ("resfit",), 3.7),
    "second_model": Group(second_model.rows, (*STEPS, "resfit/backends"), 1.0),
    "zoo": Group(zoo.rows, ("resfit/nets", "resfit/backends", "resfit/trainer/loop/predictor.py"), 5.2),
}
