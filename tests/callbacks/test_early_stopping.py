"""EarlyStopping does the same as Keras's on the same sequences of values."""

import logging
from typing import Any

import numpy as np
import pytest
from flax import nnx

from resfit.callbacks import Callback, EarlyStopping
from resfit.errors import CallbackError
from tests.helpers import PlainNet, compiled, fit, images, labels


class Scripted(Callback):
    """Write values into the logs before the tested callback reads them, and store the weights of each epoch."""

    def __init__(self, name: str, values: list[float]) -> None:
        self.name, self.values = name, values

    def on_train_begin(self, logs: Any = None) -> None:
        self.weights: list[list[np.ndarray]] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.weights.append(self.model.get_weights())
        logs[self.name] = self.values[epoch]


@pytest.fixture(scope="module")
def model() -> Any:
    return compiled(PlainNet(rngs=nnx.Rngs(0)))


def run(model: Any, callback: EarlyStopping, values: list[float], name: str = "val_loss", **arguments: Any) -> Any:
    """Return the number of epochs that ran, and the epoch whose weights the model holds."""
    script = Scripted(name, values)
    arguments = {"callbacks": [script, callback], "epochs": len(values), **arguments}
    history = fit(model, images(8), labels(8), **arguments)
    now = model.get_weights()
    held = [i for i, weights in enumerate(script.weights) if all(map(np.array_equal, weights, now))]
    return len(history.epoch), held


@pytest.mark.parametrize("patience", [0, 1, 2, 3])
def test_it_stops_after_patience_epochs_and_patience_zero_is_one(model: Any, patience: int) -> None:
    stopping = EarlyStopping(patience=patience)
    epochs, _ = run(model, stopping, [10.0, 9.0, 8.0, 9.0, 8.9, 8.8, 8.7, 8.6])
    assert stopping.stopped_epoch == epochs - 1 == max(patience, 1) + 2
    assert (stopping.best, stopping.best_epoch) == (8.0, 2)


def test_the_best_weights_are_restored(model: Any) -> None:
    values = [0.2, 0.15, 0.1, 0.11, 0.12]
    assert run(model, EarlyStopping(patience=2, restore_best_weights=True), values) == (5, [2])
    assert run(model, EarlyStopping(patience=2), values) == (5, [4])


def test_the_best_weights_are_restored_if_no_epoch_beats_the_baseline(model: Any) -> None:
    stopping = EarlyStopping(patience=5, baseline=0.5, restore_best_weights=True)
    assert run(model, stopping, [0.9, 0.8, 0.7, 0.71, 0.72, 0.73]) == (5, [2])


def test_the_best_weights_are_restored_when_another_callback_stops_or_the_last_epoch_ends(model: Any) -> None:
    class StopsAt(Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.stop_training = epoch == 3

    values = [0.2, 0.15, 0.1, 0.11, 0.12]
    stopping = EarlyStopping(patience=9, restore_best_weights=True)
    script = Scripted("val_loss", values)
    fit(model, images(8), labels(8), callbacks=[script, stopping, StopsAt()], epochs=5)
    assert len(script.weights) == 4
    np.testing.assert_array_equal(model.get_weights()[0], script.weights[2][0])
    assert run(model, stopping, values) == (5, [2])


def test_the_best_weights_are_restored_after_an_exception(model: Any) -> None:
    class Raises(Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 3:
                raise RuntimeError

    script = Scripted("val_loss", [0.3, 0.1, 0.2, 0.2])
    with pytest.raises(RuntimeError):
        fit(
            model, images(8), labels(8), epochs=4,
            callbacks=[script, EarlyStopping(patience=9, restore_best_weights=True), Raises()],
        )  # fmt: skip
    np.testing.assert_array_equal(model.get_weights()[0], script.weights[1][0])


def test_one_instance_resets_in_a_second_fit(model: Any) -> None:
    stopping = EarlyStopping(patience=2, restore_best_weights=True)
    assert run(model, stopping, [0.1, 0.2, 0.3, 0.4]) == (3, [0])
    assert stopping.stopped_epoch == 2
    assert run(model, stopping, [0.9, 0.8, 0.7]) == (3, [2])  # all worse than the best of the first fit
    assert (stopping.best, stopping.best_epoch, stopping.stopped_epoch) == (0.7, 2, 0)


def test_epochs_before_start_from_epoch_are_ignored(model: Any) -> None:
    stopping = EarlyStopping(patience=3, start_from_epoch=2, restore_best_weights=True)
    epochs, held = run(model, stopping, [0.01, 0.5, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert (epochs, held) == (6, [2])
    assert stopping.best == 0.4


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [
        ("val_loss", [3, 1, 2, 2], 1),
        ("mse", [3, 1, 2, 2], 1),
        ("val_cross_entropy", [3, 1, 2, 2], 1),
        ("acc", [1, 3, 2, 2], 3),
        ("val_accuracy", [1, 3, 2, 2], 3),
        ("val_top_5_accuracy", [1, 3, 2, 2], 3),
        ("f1", [1, 3, 2, 2], 3),
        ("auc", [1, 3, 2, 2], 3),
    ],
)
def test_auto_selects_the_direction_from_the_name(model: Any, name: str, values: list[float], best: float) -> None:
    stopping = EarlyStopping(name, patience=2)
    assert run(model, stopping, values, name)[0] == 4
    assert (stopping.best, stopping.best_epoch) == (best, 1)


def test_an_explicit_mode_overrides_the_name(model: Any) -> None:
    stopping = EarlyStopping("val_loss", patience=2, mode="max")
    run(model, stopping, [1.0, 3.0, 2.0, 2.0])
    assert stopping.best == 3.0


@pytest.mark.parametrize(
    ("values", "stopped"),
    [([0.0, 0.75, 0.75, 0.75], 2), ([0.0, 0.5, 0.5, 0.5], 1), ([0.0, 0.5, 0.75, 1.5], 1)],
)
def test_min_delta_is_strict(model: Any, values: list[float], stopped: int) -> None:
    stopping = EarlyStopping("accuracy", patience=1, min_delta=0.5, mode="max")
    run(model, stopping, values, "accuracy")
    assert stopping.stopped_epoch == stopped


@pytest.mark.parametrize("min_delta", [0.5, -0.5])
def test_the_sign_of_min_delta_does_not_matter(model: Any, min_delta: float) -> None:
    stopping = EarlyStopping(patience=1, min_delta=min_delta)
    assert run(model, stopping, [2.0, 1.6, 1.0])[0] == 2


def test_a_missing_value_is_reported_with_the_available_names_and_does_not_stop_training(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "resfit"):
        epochs, _ = run(model, EarlyStopping("val_accuracy", patience=1), [1.0, 2.0, 3.0])
    assert epochs == 3
    assert "EarlyStopping monitors 'val_accuracy', which is not in the logs" in caplog.text
    assert "'accuracy', 'loss', 'val_loss'" in caplog.text


def test_the_first_epoch_never_stops_training(model: Any) -> None:
    # NaN is not an improvement, so a patience of 1 is used up in the first epoch.
    stopping = EarlyStopping(patience=1)
    assert run(model, stopping, [float("nan")] * 3)[0] == 2


def test_epochs_without_validation_do_not_count_as_patience(model: Any) -> None:
    stopping = EarlyStopping(patience=2)
    history = fit(
        model, images(8), labels(8), epochs=6, validation_data=(images(8), labels(8)), validation_freq=3,
        callbacks=[stopping],
    )  # fmt: skip
    assert len(history.epoch) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"monitor": "temperature"}, "'temperature' is better.*mode='min' or 'max'"),
        ({"mode": "lower"}, "Unknown mode 'lower'"),
        ({"patience": -1}, "0 or more, got -1"),
    ],
)
def test_invalid_arguments_raise(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CallbackError, match=message):
        EarlyStopping(**arguments)


def test_verbose_reports_the_stop(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "resfit"):
        run(model, EarlyStopping(patience=1, verbose=1, restore_best_weights=True), [1.0, 2.0])
    assert "stopped after epoch 1; the best was epoch 0" in caplog.text
    assert "restored the variables of epoch 0" in caplog.text


def test_a_monitored_array_raises_with_its_name() -> None:
    stopping = EarlyStopping(monitor="loss")
    stopping.on_train_begin()
    with pytest.raises(CallbackError, match=r"'loss'.*array"):
        stopping.on_epoch_end(0, {"loss": np.zeros(3)})
