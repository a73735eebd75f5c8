"""The running average of the weights: updated in the step, used only where it is asked for."""

import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.errors import CompileError
from tests.helpers import BATCH, TinyNet, compiled, fit, images, labels, values

DECAY = 0.8


class Weights(resfit.callbacks.Callback):
    """What the weights are after every step."""

    def __init__(self) -> None:
        self.raw: list[list[np.ndarray]] = []

    def on_train_begin(self, logs: object = None) -> None:
        self.raw.append(self.model.get_weights())

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.raw.append(self.model.get_weights())


def expected_average(steps: list[list[np.ndarray]]) -> list[np.ndarray]:
    average = [np.array(array, np.float64) for array in steps[0]]
    for step, arrays in enumerate(steps[1:]):
        share = 1 - min(DECAY, (1 + step) / (10 + step))
        average = [old + share * (new - old) for old, new in zip(average, arrays, strict=True)]
    return average


def test_the_average_is_its_formula_over_parameters_and_statistics_once_per_update() -> None:
    watch = Weights()
    model = compiled(ema=DECAY)
    fit(model, epochs=3, callbacks=[watch])
    assert len(watch.raw) == 1 + 3 * 3
    for average, expected in zip(model.get_weights("ema"), expected_average(watch.raw), strict=True):
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)


def test_the_average_changes_nothing_that_is_trained_and_is_not_used_unasked() -> None:
    plain, averaged = compiled(), compiled(ema=DECAY)
    for model in (plain, averaged):
        fit(model, epochs=2)
    for a, b in zip(plain.get_weights(), averaged.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    x, y = images(), labels()
    assert plain.evaluate(x, y, verbose=0) == averaged.evaluate(x, y, verbose=0)
    np.testing.assert_array_equal(plain.predict(x, verbose=0), averaged.predict(x, verbose=0))


def test_evaluate_predict_and_save_use_the_average_on_request(tmp_path) -> None:
    model = compiled(ema=DECAY)
    fit(model, epochs=2)
    before = values(model.module)
    x, y = images(), labels()
    logits = model.predict(x, verbose=0, weights="ema")
    loss = model.evaluate(x, y, verbose=0, weights="ema")
    assert not np.allclose(logits, model.predict(x, verbose=0))
    np.testing.assert_allclose(loss[1], (logits.argmax(1) == y).mean(), rtol=1e-6)
    model.save(tmp_path / "ema.safetensors", weights="ema")
    after = values(model.module)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    loaded = resfit.load(tmp_path / "ema.safetensors", module=TinyNet(rngs=nnx.Rngs(5)))
    np.testing.assert_allclose(loaded.predict(x, verbose=0), logits, atol=1e-6)


def test_the_average_is_refused_where_there_is_none() -> None:
    with pytest.raises(CompileError, match=r"ema=0\.999"):
        compiled().evaluate(images(), labels(), verbose=0, weights="ema")
    with pytest.raises(CompileError, match="'raw' or 'ema'"):
        compiled(ema=DECAY).predict(images(), verbose=0, weights="mean")
    with pytest.raises(CompileError, match="between 0 and 1"):
        compiled(ema=1.0)


def test_swap_ema_weights_validates_with_the_average_and_leaves_the_trained_weights() -> None:
    held_out = (images(7, seed=3), labels(7, seed=3))
    trained = compiled()
    fit(trained, epochs=2)
    model = compiled(ema=DECAY)
    history = fit(model, epochs=2, validation_data=held_out, callbacks=[resfit.callbacks.SwapEMAWeights()])
    assert history.history["val_loss"][-1] == model.evaluate(*held_out, verbose=0, weights="ema", batch_size=BATCH)[0]
    assert history.history["val_loss"][-1] != model.evaluate(*held_out, verbose=0, batch_size=BATCH)[0]
    for a, b in zip(trained.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_swap_on_epoch_lets_later_callbacks_save_the_average_and_training_goes_on_from_the_raw_weights(
    tmp_path,
) -> None:
    trained = compiled()
    fit(trained, epochs=2)
    model = compiled(ema=DECAY)
    saved = []

    class After(resfit.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            saved.append((self.model.get_weights(), self.model.get_weights("ema")))

    fit(model, epochs=2, callbacks=[resfit.callbacks.SwapEMAWeights(swap_on_epoch=True), After()])
    for module, average in saved:
        for a, b in zip(module, average, strict=True):
            np.testing.assert_array_equal(a, b)
    for a, b in zip(trained.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_swap_ema_weights_without_an_average_says_what_to_do() -> None:
    model = compiled()
    with pytest.raises(CompileError, match="ema="):
        fit(model, callbacks=[resfit.callbacks.SwapEMAWeights()])
