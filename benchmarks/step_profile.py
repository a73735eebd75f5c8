"""The shares of a training step on a CPU by kind of operation, from a profile of XLA's operations.

    python -m benchmarks.step_profile resnet20
    python -m benchmarks.step_profile resnet18_bfloat16 --norms xla --steps 20

The time of an operation is a low quantile of its times in all steps, which other load on the machine changes little.
Operations that run at the same time all count, and a convolution can wait for another one, so the sum of all kinds is
more than the time of a step.
"""

import argparse
import collections
import pathlib
import re
import tempfile
import time
from typing import Any

import jax
from jax.extend.backend import get_backend

import resfit
from benchmarks import problems
from resfit.backends import onednn

QUANTILE = 0.05
CALLS = {
    "forward of": "convolution, forward",
    "data gradient of": "convolution, gradient of images",
    "weight gradient of": "convolution, gradient of kernel",
    "resfit_norm_forward": "norm, addition and ReLU, forward",
    "resfit_norm_backward": "norm, addition and ReLU, backward",
}
_LINE = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*)")


def kind(name: str, line: str) -> str:
    """Return the kind of an operation, from its line in the compiled program."""
    if "custom-call" in line:
        return next((what for text, what in CALLS.items() if text in line), "other calls")
    backward = "transpose(" in line
    if "convolution" in line.partition("(")[0] or " convolution(" in line:
        return f"convolution by XLA, {'backward' if backward else 'forward'}"
    if "dot" in name:
        return "dense layers"
    if backward or "jvp" in line:
        return f"norm, addition and ReLU by XLA, {'backward' if backward else 'forward'}"
    return "other: optimizer, inputs, metrics, casts of kernels"


def profile(model: resfit.Model, x: Any, y: Any, batch: int) -> dict[str, list[float]]:
    """Return the milliseconds of all executions of each operation in an epoch."""
    found = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            model.fit(x, y, batch_size=batch, verbose=0)
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        events = jax.profiler.ProfileData.from_file(str(file))
        for plane in events.planes:
            for line in plane.lines:
                for event in line.events:
                    stats = dict(event.stats)
                    if "hlo_op" in stats:
                        found[str(stats["hlo_op"])].append(event.duration_ns / 1e6)
    return found


def main() -> None:
    """Print the shares of one problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=problems.CPU)
    parser.add_argument("--kernels", default="auto", help="cpu_kernels of compile")
    parser.add_argument("--norms", choices=("native", "xla"), default="native", help="who computes BatchNorms")
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    problem = problems.problem("cpu", given.problem, given.steps)
    x, y = problems.images(problem)
    if given.norms == "xla":
        onednn.has_norms = lambda: False
    model = resfit.Model(problems.network(problem))
    model.compile("sgd", learning_rate=0.01, cpu_kernels=given.kernels)
    model.fit(x[: problem.batch], y[: problem.batch], batch_size=problem.batch, verbose=0)
    wall, processor = time.perf_counter(), time.process_time()
    model.fit(x, y, batch_size=problem.batch, verbose=0)
    wall, processor = ((now - then) / given.steps * 1e3 for now, then in
                       ((time.perf_counter(), wall), (time.process_time(), processor)))  # fmt: skip
    print(f"{problem.title}: {wall:.0f} ms a step, {processor:.0f} ms of processor time")
    times = profile(model, x, y, problem.batch)
    programs = [module.to_string() for made in get_backend().live_executables() for module in made.hlo_modules()]
    lines = dict(match.groups() for line in max(programs, key=len).splitlines() if (match := _LINE.match(line)))
    totals: collections.Counter[str] = collections.Counter()
    for name, values in times.items():
        totals[kind(name, lines.get(name, ""))] += (
            sorted(values)[int(len(values) * QUANTILE)] * len(values) / given.steps
        )
    for what, total in totals.most_common():
        print(f"{total:9.1f} ms {total / totals.total():6.1%}  {what}")


if __name__ == "__main__":
    main()
