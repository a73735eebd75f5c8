"""A long `fit` on an accelerator: the time of a step without the fixed cost of a call."""

import statistics
import time
from typing import Any

import resfit
from benchmarks import problems
from benchmarks.child import ask
from benchmarks.contestants import LEARNING_RATE
from benchmarks.rows import Row, left_out, timed

RUNS = {
    # (name of the problem, cache): (epochs, steps of an epoch)
    ("resnet20", None): (12, 40),
    ("resnet20", "device"): (12, 40),
    ("resnet50", "device"): (30, 4),
}
PLACES = {None: "images in the host's memory", "device": "images on the device"}


class Epochs(resfit.callbacks.Callback):
    """A callback that reads the clock at the end of each epoch."""

    def __init__(self) -> None:
        self.clock: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.clock.append(time.perf_counter())


def rows(platform: str, quick: bool) -> list[Row]:
    """Return the milliseconds of a step of one fit."""
    if platform == "cpu":
        return [left_out("a long fit", "steps", "the fixed cost of a call is small beside a CPU's steps")]
    found = []
    for (name, cache), (epochs, steps) in RUNS.items():
        arguments = {"epochs": 4 if quick else epochs, "steps": steps, "cache": cache}
        times = ask("benchmarks.long_fit:measure", platform=platform, name=name, **arguments)
        problem = problems.problem(platform, name)
        rate = problem.batch / statistics.median(times) * 1e3
        note = f"{len(times)} epochs of {steps} steps; {rate:,.0f} images a second"
        found.append(timed(f"{problem.title}, a long fit", f"fit step, {PLACES[cache]}", times, note))
    return found


def measure(platform: str, name: str, epochs: int, steps: int, cache: str | None) -> list[float]:
    """Return the milliseconds of a step in each epoch but the first, which compiles."""
    problem = problems.problem(platform, name, steps)
    x, y = problems.images(problem)
    model = resfit.Model(problems.network(problem))
    model.compile("sgd", learning_rate=LEARNING_RATE)
    watch = Epochs()
    model.fit(x, y, batch_size=problem.batch, epochs=epochs, cache=cache, verbose=0, callbacks=[watch])
    pairs = zip(watch.clock, watch.clock[1:], strict=False)
    return [(after - before) / steps * 1e3 for before, after in pairs]
