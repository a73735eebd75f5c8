"""The cost of ten callbacks that read nothing in a step: `fit` with and without them, interleaved in one run.

    python -m benchmarks.callbacks --net resnet20 --rounds 15

Each call is one epoch of some seconds. The callbacks do their work: they write rows, event files and the model at the
end, and check losses for NaN, eight at a time and eight steps late. There is no validation. The share of each callback
is the processor time of the main thread in its batch hooks and in all other hooks.
"""

import argparse
import collections
import datetime
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import resfit
from benchmarks import interleaved, problems
from benchmarks.child import ask
from benchmarks.rows import Row, compared, timed
from resfit import callbacks

STEPS = {"tiny": 1000, "resnet20": 3}  # epochs of a second and more


def ten(folder: Path) -> list[callbacks.Callback]:
    """Return ten callbacks as a user passes them; all of them only observe."""
    return [
        callbacks.EarlyStopping("loss", patience=1000),
        callbacks.ReduceLROnPlateau("loss", patience=1000),
        callbacks.LearningRateScheduler(lambda epoch, rate: rate),
        callbacks.ModelCheckpoint(folder / "best.safetensors", monitor="loss", save_best_only=True),
        callbacks.CSVLogger(folder / "log.csv"),
        callbacks.JSONLogger(folder / "log.jsonl"),
        callbacks.TensorBoard(folder / "logs"),
        callbacks.TerminateOnNaN(),
        callbacks.Throughput(),
        callbacks.Timer(datetime.timedelta(days=1)),
    ]


def timed_hooks(callback: callbacks.Callback, spent: collections.Counter[tuple[str, str]]) -> callbacks.Callback:
    """Wrap the hooks of a callback: they add their main-thread seconds to `spent[class, "batch" or "epoch"]`."""

    def wrap(hook: str) -> Callable[..., None]:
        method, key = getattr(callback, hook), (type(callback).__name__, "batch" if "batch" in hook else "epoch")

        def run(*args: object) -> None:
            start = time.thread_time()
            method(*args)
            spent[key] += time.thread_time() - start

        return run

    for hook in (name for name in dir(callback) if name.startswith("on_")):
        if getattr(type(callback), hook) is not getattr(callbacks.Callback, hook):
            setattr(callback, hook, wrap(hook))
    return callback


def rows(platform: str, quick: bool) -> list[Row]:
    """Return the cost of ten callbacks on both networks."""
    found = []
    for name in ("tiny",) if quick else STEPS:
        title = problems.problem(platform, name).title
        taken = ask("benchmarks.callbacks:measure", platform=platform, name=name, rounds=3 if quick else 7)
        times = [[wall for wall, _ in rounds] for rounds in taken["times"].values()]
        none, ten_callbacks = times
        note = f"main thread in hooks: {taken['batch']:.3f} ms a batch, {taken['epoch']:.1f} ms an epoch"
        found.append(timed(title, "fit step without callbacks", none))
        found.append(compared(title, "fit step with ten callbacks / without", ten_callbacks, none, note=note))
    return found


def measure(platform: str, name: str, rounds: int) -> dict[str, Any]:
    """Return the times of a step with and without callbacks, and the main-thread milliseconds in their hooks."""
    problem = problems.problem(platform, name, STEPS[name])
    x, y = problems.images(problem)
    model = resfit.Model(problems.network(problem))
    model.compile("sgd", learning_rate=0.1)
    with tempfile.TemporaryDirectory() as folder:

        def fit(watchers: list[callbacks.Callback]) -> None:
            model.fit(x, y, batch_size=problem.batch, verbose=0, callbacks=watchers)

        contestants = {"no callbacks": lambda: fit([]), "ten callbacks": lambda: fit(ten(Path(folder)))}
        times = interleaved.measure(contestants, rounds, problem.steps)
        spent: collections.Counter[tuple[str, str]] = collections.Counter()
        fit([timed_hooks(callback, spent) for callback in ten(Path(folder))])
    shares = {"times": times, "batch": 0.0, "epoch": 0.0, "each": {}}
    for (callback, what), seconds in spent.items():
        milliseconds = seconds / (problem.steps if what == "batch" else 1) * 1e3
        shares[what] += milliseconds
        shares["each"][f"{callback}, {what}"] = milliseconds
    return shares


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=list(STEPS), action="append", help="one of these only; may be repeated")
    parser.add_argument("--rounds", type=int, default=11, help="measured rounds of each, interleaved")
    arguments = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].platform}, {len(jax.devices())} device(s)")
    for name in arguments.net or STEPS:
        taken = measure(jax.devices()[0].platform, name, arguments.rounds)
        interleaved.report(name, taken["times"])
        for what in ("batch", "epoch"):
            each = {key: share for key, share in taken["each"].items() if key.endswith(what)}
            listed = ", ".join(f"{key} {each[key]:.3f}" for key in sorted(each, key=each.__getitem__, reverse=True))
            print(f"{name:9} hooks, ms of the main thread: {taken[what]:.3f} ({listed})")


if __name__ == "__main__":
    main()
