"""Validation inside fit: by epochs as in Keras, and by steps."""

import numpy as np
import pytest

import resfit
from resfit.errors import DataError
from tests.helpers import compiled, fit, images, labels


class Trace(resfit.callbacks.Callback):
    def __init__(self) -> None:
        self.events: list[str] = []

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.events.append(f"b{batch}")

    def on_test_end(self, logs: object = None) -> None:
        self.events.append("validated")

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.events.append("e")


def test_validation_by_steps_runs_inside_and_across_epochs() -> None:
    trace = Trace()
    history = fit(compiled(), epochs=3, validation_data=(images(6), labels(6)), validation_every=2, callbacks=[trace])
    # 3 steps an epoch: after steps 2, 4, 6 and 8.
    assert trace.events == [
        *("b0", "b1", "validated", "b2", "e"),
        *("b0", "validated", "b1", "b2", "validated", "e"),
        *("b0", "b1", "validated", "b2", "e"),
    ]
    assert history.validations["step"] == [2, 4, 6, 8]
    assert len(history.validations["loss"]) == 4
    last_of_each_epoch = [history.validations["loss"][i] for i in (0, 2, 3)]
    assert history.history["val_loss"] == last_of_each_epoch


def test_an_epoch_without_validation_has_no_values_in_the_history() -> None:
    history = fit(compiled(), epochs=3, validation_data=(images(6), labels(6)), validation_every=6)
    assert history.epochs["val_loss"] == [1]


def test_validation_changes_nothing_that_is_trained() -> None:
    weights = []
    for arguments in ({}, {"validation_data": (images(6), labels(6)), "validation_every": 1}):
        model = compiled()
        fit(model, epochs=2, **arguments)
        weights.append(model.get_weights())
    for plain, validated in zip(*weights, strict=True):
        np.testing.assert_array_equal(plain, validated)


def test_validation_every_must_be_positive() -> None:
    with pytest.raises(DataError, match="validation_every"):
        fit(compiled(), validation_data=(images(6), labels(6)), validation_every=0)
