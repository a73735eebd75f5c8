"""Named learning-rate schedules span the epochs of a fit."""

import jax
import numpy as np
import pytest

import resfit
from resfit.errors import CompileError, DataError
from tests.helpers import compiled, counting_compilations, fit, images, labels

X, Y = images(16), labels(16)  # two steps an epoch


class Rates(resfit.callbacks.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.values.append(self.model.learning_rate)


def test_a_named_schedule_spans_the_epochs_and_starts_again_with_the_next_fit_without_compiling() -> None:
    rates = Rates()
    model = compiled(learning_rate="cosine")
    fit(model, X, Y, epochs=2, callbacks=[rates])
    with counting_compilations() as compilations:
        fit(model, X, Y, epochs=4, callbacks=[rates])
    assert not compilations
    two, four = (0.05 * (1 + np.cos(np.pi * np.arange(steps) / steps)) for steps in (4, 8))
    expected = [*two, *four]
    np.testing.assert_allclose(rates.values, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_a_schedule_object_has_options_and_initial_epoch_begins_in_the_middle() -> None:
    rates = Rates()
    schedule = resfit.schedules.Cosine(peak=0.4)
    fit(compiled(learning_rate=schedule), X, Y, epochs=4, initial_epoch=2, callbacks=[rates])
    over = jax.jit(jax.vmap(schedule.over(epochs=4, steps_per_epoch=2)))
    np.testing.assert_allclose(rates.values, over(np.arange(4, 8)), rtol=1e-5)


def test_the_log_of_every_epoch_has_the_learning_rate_of_the_schedule() -> None:
    rates = Rates()
    history = fit(compiled(learning_rate="linear"), X, Y, epochs=3, callbacks=[rates])
    assert history.history["learning_rate"] == rates.values[1::2]
    assert "learning_rate" not in fit(compiled(), X, Y).history


def test_a_scheduled_rate_cannot_be_set_by_hand() -> None:
    model = compiled(learning_rate="cosine")
    with pytest.raises(CompileError, match="schedule"):
        model.learning_rate = 0.1


def test_a_schedule_needs_to_know_how_long_an_epoch_is() -> None:
    model = compiled(learning_rate="cosine")
    with pytest.raises(DataError, match="steps_per_epoch"):
        model.fit(((images(8), labels(8)) for _ in range(3)), verbose=0)
    with pytest.raises(CompileError, match="train_on_batch"):
        compiled(learning_rate="cosine").train_on_batch(images(8), labels(8))


def test_an_unknown_schedule_raises_with_the_known_names() -> None:
    with pytest.raises(CompileError, match="'cosine'"):
        compiled(learning_rate="cosinus")
