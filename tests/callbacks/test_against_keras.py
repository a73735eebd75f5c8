"""Callbacks that share a name with a Keras callback give the same results as Keras, for random values and settings.

Needs Keras, which the other tests do not need: `make against` installs it.
Numbers are multiples of an eighth, because Keras compares in float32 and resfit in float64.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resfit import callbacks
from tests.callbacks.fakes import FakeModel
from tests.packages import package

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = package("keras")

pytestmark = [
    pytest.mark.originals,
    pytest.mark.filterwarnings("ignore:Can save best model only:UserWarning"),
]

EIGHTHS = st.integers(0, 16).map(lambda n: n / 8)
VALUES = st.lists(EIGHTHS, min_size=1, max_size=12)
DELTAS = st.sampled_from([0.0, 0.125, 0.25, -0.125])


class Watched(FakeModel):
    """A fake model of either library. Its weights are the number of the epoch."""

    def __init__(self) -> None:
        super().__init__(0.1)
        self.optimizer = self  # Keras looks for the learning rate here
        self.metrics: list[Any] = []
        self.weights = -1
        self.files: list[str] = []

    keeps_averages, validation_weights = False, "raw"

    def get_weights(self, weights: str = "raw") -> int:
        return self.weights

    def set_weights(self, weights: int, averages: None = None) -> None:
        self.weights = weights

    def save(self, path: Any, overwrite: bool = True, weights: str = "raw") -> None:
        self.files.append(Path(path).stem)


def run(
    callback: Any, epochs: list[dict[str, float]], batches: int = 0, first: int = 0
) -> tuple[Watched, list[dict[str, float]]]:
    """Play a run. Return the model and the logs of the epochs that ran, as changed by the callback."""
    model = Watched()
    callback.set_params({"verbose": 0, "epochs": len(epochs), "steps": batches})
    callback.set_model(model)
    callback.on_train_begin({})
    done = []
    for epoch, values in enumerate(epochs, first):
        logs = dict(values)
        callback.on_epoch_begin(epoch, {})
        for i in range(batches):
            callback.on_train_batch_end(i, dict(values))
        model.weights = epoch
        callback.on_epoch_end(epoch, logs)
        done.append(logs)
        if model.stop_training:
            break
    callback.on_train_end(done[-1])
    return model, done


def monitored(values: list[float]) -> list[dict[str, float]]:
    return [{"val_loss": value} for value in values]


@given(
    values=VALUES,
    settings=st.fixed_dictionaries(
        {
            "min_delta": DELTAS,
            "patience": st.integers(0, 4),
            "mode": st.sampled_from(["min", "max"]),
            "baseline": st.none() | EIGHTHS,
            "restore_best_weights": st.booleans(),
            "start_from_epoch": st.integers(0, 3),
        }
    ),
)
def test_early_stopping_stops_at_the_same_epoch_with_the_same_weights(
    values: list[float], settings: dict[str, Any]
) -> None:
    ours, theirs = callbacks.EarlyStopping(**settings), keras.callbacks.EarlyStopping(**settings)
    (model, logs), (keras_model, keras_logs) = run(ours, monitored(values)), run(theirs, monitored(values))
    assert len(logs) == len(keras_logs)
    assert model.weights == keras_model.weights
    assert (ours.stopped_epoch, ours.best_epoch) == (theirs.stopped_epoch, theirs.best_epoch)


@given(
    values=VALUES,
    settings=st.fixed_dictionaries(
        {
            "factor": st.sampled_from([0.1, 0.5]),
            "patience": st.integers(0, 3),
            "mode": st.sampled_from(["min", "max"]),
            "min_delta": DELTAS,
            "cooldown": st.integers(0, 3),
            "min_lr": st.sampled_from([0.0, 0.005, 0.05]),
        }
    ),
)
def test_reduce_lr_on_plateau_sets_the_same_learning_rates(values: list[float], settings: dict[str, Any]) -> None:
    model, logs = run(callbacks.ReduceLROnPlateau(**settings), monitored(values))
    keras_model, keras_logs = run(keras.callbacks.ReduceLROnPlateau(**settings), monitored(values))
    assert logs == keras_logs
    assert model.learning_rate == keras_model.learning_rate


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=8), takes_rate=st.booleans())
def test_learning_rate_scheduler_sets_the_same_learning_rates(values: list[float], takes_rate: bool) -> None:
    def of_epoch(epoch: int) -> float:
        return values[epoch]

    def of_rate(epoch: int, rate: float) -> float:
        return rate * values[epoch]

    schedule = of_rate if takes_rate else of_epoch
    epochs = monitored(values)
    _, logs = run(callbacks.LearningRateScheduler(schedule), epochs)
    _, keras_logs = run(keras.callbacks.LearningRateScheduler(schedule), epochs)
    assert logs == keras_logs


@given(
    values=VALUES,
    settings=st.fixed_dictionaries(
        {
            "save_best_only": st.booleans(),
            "mode": st.sampled_from(["min", "max"]),
            "initial_value_threshold": st.none() | EIGHTHS,
            "monitor": st.sampled_from(["val_loss", "missing"]),
        }
    ),
)
def test_model_checkpoint_writes_the_same_files_at_epochs(values: list[float], settings: dict[str, Any]) -> None:
    name = "{epoch:02d}-{val_loss:.3f}"
    model, _ = run(callbacks.ModelCheckpoint(f"{name}.safetensors", **settings), monitored(values))
    keras_model, _ = run(keras.callbacks.ModelCheckpoint(f"{name}.keras", **settings), monitored(values))
    assert model.files == keras_model.files


@given(epochs=st.integers(1, 6), batches=st.integers(1, 5), frequency=st.integers(1, 12))
def test_model_checkpoint_writes_the_same_files_at_steps(epochs: int, batches: int, frequency: int) -> None:
    name, values = "{epoch}-{batch}", monitored([0.5] * epochs)
    model, _ = run(callbacks.ModelCheckpoint(f"{name}.safetensors", save_freq=frequency), values, batches)
    keras_model, _ = run(keras.callbacks.ModelCheckpoint(f"{name}.keras", save_freq=frequency), values, batches)
    assert model.files == keras_model.files


@given(
    runs=st.lists(st.lists(st.floats(width=32), min_size=1, max_size=6), min_size=1, max_size=3),
    separator=st.sampled_from([",", ";", "\t"]),
    append=st.booleans(),
    one_object=st.booleans(),
    frequency=st.integers(1, 4),
)
def test_csv_logger_writes_the_same_rows(
    runs: list[list[float]], separator: str, append: bool, one_object: bool, frequency: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tables = []
        for kind in (callbacks.CSVLogger, keras.callbacks.CSVLogger):
            path = Path(folder) / f"{kind.__module__}.csv"
            callback = None
            for values in runs:
                epochs = [
                    {"loss": value, "accuracy": value / 2}
                    | ({"val_loss": value * 2, "val_accuracy": value} if (i + 1) % frequency == 0 else {})
                    for i, value in enumerate(values)
                ]
                callback = callback if callback and one_object else kind(str(path), separator=separator, append=append)
                run(callback, epochs)
            tables.append([line.split(separator) for line in path.read_text().splitlines()])
    ours, theirs = tables
    if len(ours[0]) < len(theirs[0]):
        # Without a validation, Keras still writes columns of NA.
        assert all(cell == "NA" for row in theirs[1:] for cell in row[3:])
        theirs = [row[:3] for row in theirs]
    assert ours == theirs
