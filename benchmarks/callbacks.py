"""What ten callbacks cost that read nothing in a step: `fit` with them and without, interleaved in one run.

    python -m benchmarks.callbacks --net resnet20 --rounds 15

An epoch of some seconds a call. The ten do what they are for: rows, event files and the model are written at its end,
and losses are looked at for NaN, eight at a time and eight steps late. No validation makes the epoch longer.
"""

import argparse
import datetime
import tempfile
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
