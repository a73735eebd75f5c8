"""TerminateOnNaN finds the first bad batch without waiting for the device."""

import csv
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.callbacks import TerminateOnNaN
from resfit.errors import CallbackError, NonFiniteLossError
from tests.callbacks.fakes import SlowArray, batch, begin, counting_reads, lazy
from tests.helpers import PlainNet, Recorder, compiled, fit, images, labels


def run(callback: TerminateOnNaN, losses: list[float], epoch: int = 0) -> int:
    """Play one epoch. Return the number of batches before the training stops."""
    callback.on_epoch_begin(epoch, {})
    for i, loss in enumerate(losses):
        callback.on_train_batch_end(i, batch(0.0, own=loss))
        if callback.model.stop_training:
            callback.on_epoch_end(epoch, {})
            return i + 1
    callback.on_epoch_end(epoch, {})
    return len(losses)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 1, 7, 8, 9, 30, 39])
def test_the_first_bad_batch_is_found_at_most_sixteen_steps_later(bad: float, where: int) -> None:
    callback = TerminateOnNaN()
    begin(callback)
    ran = run(callback, [1.0] * where + [bad] * (40 - where), epoch=3)
    assert callback.bad_batch == (3, where)
    assert callback.model.stop_training
    assert ran - 1 - where <= 16


def test_finite_losses_do_not_stop_training() -> None:
    callback = TerminateOnNaN()
    begin(callback)
    assert run(callback, [1.0, 3e38, -1.0, 0.0] * 10) == 40
    assert callback.bad_batch is None
    assert not callback.model.stop_training


def test_it_does_not_wait_for_an_unfinished_step() -> None:
    """The device is eight steps behind, the most that the loop allows. SlowArray fails if a loss is read too early."""
    callback = TerminateOnNaN()
    begin(callback)
    callback.on_epoch_begin(0, {})
    losses = [SlowArray(1.0) for _ in range(50)]
    for i, loss in enumerate(losses):
        if i >= 8:
            losses[i - 8].finish()
        callback.on_train_batch_end(i, lazy(SlowArray(1.0), loss))


def test_the_losses_of_eight_steps_are_read_in_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = counting_reads(monkeypatch)
    callback = TerminateOnNaN()
    begin(callback)
    run(callback, [1.0] * 80)
    assert reads.reads <= 80 / 8


def test_one_object_can_be_used_in_two_fits() -> None:
    callback = TerminateOnNaN()
    begin(callback)
    run(callback, [float("nan")])
    begin(callback)
    run(callback, [1.0])
    assert callback.bad_batch is None
    assert not callback.model.stop_training


def test_an_invalid_argument_raises() -> None:
    with pytest.raises(CallbackError, match="Expected raise_error"):
        TerminateOnNaN("yes")  # type: ignore[arg-type]


class Poisoned(PlainNet):
    """A network that returns NaN for images that contain a 7."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.numpy.where((x == 7.0).any(), jax.numpy.nan, super().__call__(x))


def poisoned_images() -> np.ndarray:
    x = images(40)
    x[17] = 7.0  # in the third batch of eight
    return x


def test_a_diverging_fit_stops_in_its_epoch_and_still_has_a_validation_and_a_last_row() -> None:
    model = compiled(Poisoned(rngs=nnx.Rngs(0)))
    callback = TerminateOnNaN()
    history = fit(
        model, poisoned_images(), labels(40), epochs=5, shuffle=False, validation_data=(images(9), labels(9)),
        callbacks=[callback, resfit.callbacks.CSVLogger("log.csv")],
    )  # fmt: skip
    assert callback.bad_batch == (0, 2)
    assert history.epoch == [0]
    assert math.isnan(history.history["loss"][0])
    with Path("log.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["loss"] == "nan"
    assert "val_loss" in row


class Exploding(nnx.Module):
    """Two dense layers. The first one overflows after one of its parameters was made huge."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(64, 8, rngs=rngs)
        self.second = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(self.first(x.reshape(x.shape[0], -1)))


def _set(model: resfit.Model, layer: str, value: float) -> None:
    part = getattr(model.module, layer)
    part.kernel[...] = np.full(part.kernel.shape, value, np.float32)


class Spoil(resfit.callbacks.Callback):
    """Change the model before the second batch."""

    def __init__(self, action: Any) -> None:
        self._action = action

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 1:
            self._action(self.model)


@pytest.mark.representatives("arguments1-<lambda>-the output of the layer 'first'", "arguments4-None-the loss")
@pytest.mark.parametrize(
    ("arguments", "action", "place"),
    [
        ({}, lambda model: _set(model, "first", float("nan")), "the parameter 'first.kernel', before the step"),
        ({}, lambda model: _set(model, "first", 3e38), "the output of the layer 'first'"),
        ({}, lambda model: _set(model, "second", 3e38), "the output of the layer 'second'"),
        ({"preprocess": lambda x: x / 0}, None, "the batch's inputs after augment and preprocess"),
        ({"loss": lambda logits, y: logits[:, 0] * np.nan}, None, "the loss"),
    ],
)
def test_locate_names_the_first_non_finite_value(arguments: Any, action: Any, place: str) -> None:
    model = compiled(Exploding(rngs=nnx.Rngs(0)), **{"loss": "categorical_crossentropy", **arguments})
    if "loss" not in arguments:
        model.compile("sgd", learning_rate=0.1, dispatch="jit", **arguments)
    callback = TerminateOnNaN(locate=True)
    callbacks = [callback] if action is None else [Spoil(action), callback]
    fit(model, images(40), labels(40), callbacks=callbacks)
    assert callback.bad_batch == (0, 0 if action is None else 1)
    assert callback.bad_place == place
    assert not model.keep_last_step


@pytest.mark.parametrize("steps", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_locate_finds_the_layer_of_a_residual_network_and_stops_at_once(steps: int) -> None:
    model = compiled(Poisoned(rngs=nnx.Rngs(0)), steps_per_execution=steps)
    callback, recorder = TerminateOnNaN(locate=True), Recorder()
    fit(model, poisoned_images(), labels(40), shuffle=False, callbacks=[callback, recorder])
    assert callback.bad_batch == (0, 2)
    assert callback.bad_place == "the network's output"
    assert [entry[1] for entry in recorder.trace if entry[0] == "on_train_batch_end"] == [0, 1, 2]


def test_locating_a_step_that_was_not_kept_raises() -> None:
    model = compiled()
    fit(model)
    with pytest.raises(resfit.errors.ModuleError, match="keep_last_step = True"):
        model.first_non_finite()


def test_a_step_with_only_finite_values_has_no_location() -> None:
    model = compiled()
    model.keep_last_step = True
    fit(model)
    assert model.first_non_finite() is None


def test_raise_error_raises_and_calls_the_hooks_of_the_other_callbacks() -> None:
    recorder = Recorder()
    model = compiled(Poisoned(rngs=nnx.Rngs(0)))
    with pytest.raises(NonFiniteLossError, match="loss of batch 2 in epoch 0 is nan") as info:
        fit(
            model,
            poisoned_images(),
            labels(40),
            epochs=5,
            shuffle=False,
            callbacks=[recorder, TerminateOnNaN(raise_error=True)],
        )
    assert isinstance(info.value, RuntimeError)
    assert recorder.names()[-2:] == ["on_exception", "on_train_end"]


def test_it_does_not_use_the_running_mean() -> None:
    callback = TerminateOnNaN()
    begin(callback)
    callback.on_epoch_begin(0, {})
    logs: Any = batch(float("nan"), own=1.0)
    callback.on_train_batch_end(0, logs)
    callback.on_epoch_end(0, {})
    assert callback.bad_batch is None


def test_the_last_step_can_be_located_after_freeze() -> None:
    model = compiled()
    model.keep_last_step = True
    fit(model)
    model.freeze("conv")
    assert model.keep_last_step
    assert model.first_non_finite() is None
    with pytest.raises(resfit.errors.NotCompiledError):
        fit(model)
