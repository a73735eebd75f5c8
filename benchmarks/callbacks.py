"""What ten callbacks cost that read nothing in a step: `fit` with them and without, interleaved in one run.

    python -m benchmarks.callbacks --net resnet20 --rounds 15

An epoch of some seconds a call. The ten do what they are for: rows, event files and the model are written at its end,
and losses are looked at for NaN, eight at a time and eight steps late. No validation makes the epoch longer. Then each
callback's share: the processor's time of the main thread in its hooks of a batch and in all others.
"""

import argparse
import collections
import datetime
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax

import resfit
from benchmarks import interleaved
from benchmarks.steps import NETS, problem
from resfit import callbacks

LONGER = {"tiny": 10, "resnet20": 1}  # epochs of two seconds and more


def ten(folder: Path) -> list[callbacks.Callback]:
    """Ten callbacks as a user would pass them, all of which only look on."""
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


def timed(callback: callbacks.Callback, spent: collections.Counter[tuple[str, str]]) -> callbacks.Callback:
    """The callback, whose hooks add their seconds of the main thread to `spent[class, "batch" or "epoch"]`."""

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


def measure(name: str, rounds: int) -> None:
    """Prints the time of a step with and without the ten, and their ratio."""
    module, x, y, batch, steps = problem(name, LONGER[name])
    model = resfit.Model(module)
    model.compile("sgd", learning_rate=0.1, dispatch="jit")
    with tempfile.TemporaryDirectory() as folder:

        def fit(watched: bool) -> None:
            watchers = ten(Path(folder)) if watched else []
            model.fit(x, y, batch_size=batch, verbose=0, callbacks=watchers)

        contestants = {"no callbacks": lambda: fit(False), "ten callbacks": lambda: fit(True)}
        interleaved.report(name, interleaved.measure(contestants, rounds, steps))

        spent: collections.Counter[tuple[str, str]] = collections.Counter()
        watchers = [timed(callback, spent) for callback in ten(Path(folder))]
        model.fit(x, y, batch_size=batch, verbose=0, callbacks=watchers)
    for what, parts in (("batch", steps), ("epoch", 1)):
        shares = {key[0]: seconds / parts * 1e3 for key, seconds in spent.most_common() if key[1] == what}
        listed = ", ".join(f"{callback} {share:.3f}" for callback, share in shares.items())
        print(f"{name:9} hooks, ms of the main thread per {what}: {sum(shares.values()):.3f} ({listed})")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=list(NETS), action="append", help="one of these only; may be repeated")
    parser.add_argument("--rounds", type=int, default=11, help="measured rounds of each, interleaved")
    arguments = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].platform}, {len(jax.devices())} device(s)")
    for name in arguments.net or NETS:
        measure(name, arguments.rounds)


if __name__ == "__main__":
    main()
