"""XLA's CPU options on whole training steps: each compared with the defaults, in turns, in one process.

    python -m benchmarks.compiler_options
    python -m benchmarks.compiler_options --net tiny --rounds 15

An option that this version of XLA does not know is reported and skipped.
"""

import argparse
import gc
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import interleaved, problems
from benchmarks.contestants.hand_written import Loop

DEFAULTS = "defaults"
OPTIONS: dict[str, dict[str, Any]] = {
    DEFAULTS: {},
    "no YNNPACK": {"xla_cpu_experimental_ynn_fusion_type": ""},
    "YNNPACK for products only": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"},
    "fast math": {"xla_cpu_enable_fast_math": True},
    "no YNNPACK, fast math": {"xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_enable_fast_math": True},
    "concurrency-optimized schedule": {"xla_cpu_enable_concurrency_optimized_scheduler": True},
    "no concurrency-optimized schedule": {"xla_cpu_enable_concurrency_optimized_scheduler": False},
    "one thread": {"xla_cpu_multi_thread_eigen": False},
    "vectors of 512 bits": {"xla_cpu_prefer_vector_width": 512},
}
STEPS = {"resnet20": 3, "resnet50": 1, "tiny": 300}
ROUNDS = {"resnet20": 9, "resnet50": 5, "tiny": 15}


def measure(name: str, rounds: int, options: dict[str, dict[str, Any]]) -> None:
    """Print the milliseconds of a step, and their ratio to the defaults, for both clocks."""
    problem = problems.problem("cpu", name, STEPS[name])
    x, y = problems.images(problem)
    contestants: dict[str, Callable[[], object]] = {}
    for title, chosen in options.items():
        try:
            contestants[title] = _epoch(problem, x, y, chosen)
        except jax.errors.JaxRuntimeError as error:
            print(f"{problem.title:42} {title:34} left out: {str(error).splitlines()[0][:90]}")
    times = interleaved.measure(contestants, rounds, problem.steps)
    for title, taken in times.items():
        ratios = {}
        for clock in interleaved.Milliseconds._fields:
            pairs = zip(taken, times[DEFAULTS], strict=True)
            ratios[clock] = statistics.median(getattr(a, clock) / getattr(b, clock) for a, b in pairs)
        wall = [round_.wall for round_ in taken]
        print(
            f"{problem.title:42} {title:34} {statistics.median(wall):9.3f} ms ({min(wall):.3f} to {max(wall):.3f})  "
            f"ratio {ratios['wall']:.3f}, of the processor's time {ratios['processor']:.3f}",
            flush=True,
        )


def _epoch(problem: problems.Problem, x: np.ndarray, y: np.ndarray, options: dict[str, Any]) -> Callable[[], object]:
    loop = Loop(problems.network(problem))
    loop.compile(x[: problem.batch], y[: problem.batch], options)
    return lambda: loop.train(x, y, problem.batch)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=list(STEPS), action="append", help="one of these only; may be repeated")
    parser.add_argument("--rounds", type=int, help="measured rounds of each, interleaved")
    parser.add_argument("--option", choices=list(OPTIONS), action="append", help="beside the defaults; may be repeated")
    arguments = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    options = {title: OPTIONS[title] for title in (DEFAULTS, *(arguments.option or list(OPTIONS)[1:]))}
    for name in arguments.net or STEPS:
        measure(name, arguments.rounds or ROUNDS[name], options)
        gc.collect()  # free the loops of one network before the next


if __name__ == "__main__":
    main()
