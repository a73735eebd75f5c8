"""The running average of the weights: updated in the step, used only on request."""

import functools
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.errors import CompileError, ModuleError
from resfit.optimizers import sgd, skip_non_finite
from tests.helpers import BATCH, CLASSES, TinyNet, assert_same, compiled, fit, images, labels, state_of, values

DECAY, BAD = 0.8, 7.0
X, Y = images(16), labels(16)


class Weights(resfit.callbacks.Callback):
    """A callback that records the weights after every step."""

    def __init__(self) -> None:
        self.raw: list[list[np.ndarray]] = []

    def on_train_begin(self, logs: object = None) -> None:
        self.raw.append(self.model.get_weights())

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.raw.append(self.model.get_weights())


def expected_average(steps: list[list[np.ndarray]], skipped: Collection[int] = ()) -> list[np.ndarray]:
    average = [np.array(array, np.float64) for array in steps[0]]
    for step, arrays in enumerate(steps[1:]):
        share = 0.0 if step in skipped else 1 - min(DECAY, (1 + step) / (10 + step))
        average = [old + share * (new - old) for old, new in zip(average, arrays, strict=True)]
    return average


@functools.cache
def trained_without() -> resfit.Model:
    """Return a model of two epochs that keeps no averages."""
    model = compiled()
    fit(model, X, Y, epochs=2)
    return model


@pytest.mark.slow
def test_averages_change_nothing_that_is_trained_and_are_used_only_on_request() -> None:
    plain, averaged = trained_without(), compiled(ema=DECAY)
    fit(averaged, X, Y, epochs=2)
    assert_same(plain.get_weights(), averaged.get_weights())
    assert plain.evaluate(X, Y, verbose=0) == averaged.evaluate(X, Y, verbose=0)
    assert_same(plain.predict(X, verbose=0), averaged.predict(X, verbose=0))


def test_evaluate_predict_and_save_use_the_average_on_request(tmp_path) -> None:
    model = compiled(ema=DECAY)
    fit(model, X, Y, epochs=2)
    before = values(model.module)
    logits = model.predict(X, verbose=0, weights="ema")
    loss = model.evaluate(X, Y, verbose=0, weights="ema")
    assert not np.allclose(logits, model.predict(X, verbose=0))
    np.testing.assert_allclose(loss[1], (logits.argmax(1) == Y).mean(), rtol=1e-6)
    model.save(tmp_path / "ema.safetensors", weights="ema")
    after = values(model.module)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    loaded = resfit.load(tmp_path / "ema.safetensors", module=TinyNet(rngs=nnx.Rngs(5)))
    np.testing.assert_allclose(loaded.predict(X, verbose=0), logits, atol=1e-6)


def test_requesting_averages_of_a_model_without_them_raises() -> None:
    with pytest.raises(CompileError, match=r"ema=0\.999"):
        compiled().evaluate(X, Y, verbose=0, weights="ema")
    with pytest.raises(CompileError, match="'raw' or 'ema'"):
        compiled(ema=DECAY).predict(X, verbose=0, weights="mean")
    with pytest.raises(CompileError, match="between 0 and 1"):
        compiled(ema=1.0)


def test_swap_ema_weights_validates_with_the_average_and_leaves_the_trained_weights() -> None:
    held_out = (images(7, seed=3), labels(7, seed=3))
    model = compiled(ema=DECAY)
    history = fit(model, X, Y, epochs=2, validation_data=held_out, callbacks=[resfit.callbacks.SwapEMAWeights()])
    assert history.history["val_loss"][-1] == model.evaluate(*held_out, verbose=0, weights="ema", batch_size=BATCH)[0]
    assert history.history["val_loss"][-1] != model.evaluate(*held_out, verbose=0, batch_size=BATCH)[0]
    assert_same(trained_without().get_weights(), model.get_weights())


def test_swap_on_epoch_lets_later_callbacks_save_the_average_and_training_goes_on_from_the_raw_weights(
    tmp_path,
) -> None:
    model = compiled(ema=DECAY)
    saved = []

    class After(resfit.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            saved.append((self.model.get_weights(), self.model.get_weights("ema")))

    fit(model, X, Y, epochs=2, callbacks=[resfit.callbacks.SwapEMAWeights(swap_on_epoch=True), After()])
    for module, average in saved:
        assert_same(module, average)
    assert_same(trained_without().get_weights(), model.get_weights())


def test_swap_ema_weights_without_an_average_says_what_to_do() -> None:
    model = compiled()
    with pytest.raises(CompileError, match="ema="):
        fit(model, callbacks=[resfit.callbacks.SwapEMAWeights()])


# --- the table: every way to train, against NumPy ---------------------------------------------------------------------


class Poisoned(TinyNet):
    """A layer that returns NaN if a batch holds a certain number."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(jax.numpy.where((x == BAD).any(), jax.numpy.nan, x))


class HalfNet(nnx.Module):
    """A network with parameters in bfloat16."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.head = nnx.Linear(64, CLASSES, param_dtype=jax.numpy.bfloat16, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(x.reshape(x.shape[0], -1))


@pytest.mark.representatives("accumulation", "frozen norm whose statistics move")
@pytest.mark.parametrize(
    ("kind", "frozen", "arguments", "skipped"),
    [
        pytest.param(TinyNet, {}, {}, (), id="plain"),
        pytest.param(TinyNet, {}, {"gradient_accumulation_steps": 2}, (), id="accumulation"),
        pytest.param(TinyNet, {"batch_norm": True}, {}, (), id="frozen norm", marks=pytest.mark.slow),
        pytest.param(TinyNet, {"batch_norm": False}, {}, (), id="frozen norm whose statistics move"),
        pytest.param(TinyNet, {}, {"dispatch": "sharded"}, (), id="sharded", marks=pytest.mark.slow),
        pytest.param(TinyNet, {}, {"dispatch": "pmap"}, (), id="pmap", marks=pytest.mark.slow),
        pytest.param(TinyNet, {}, {"dispatch": "pmap", "batch_norm": "per_replica"}, (), id="pmap per replica"),
        pytest.param(TinyNet, {}, {"precision": "bfloat16"}, (), id="bfloat16", marks=pytest.mark.slow),
        pytest.param(
            Poisoned, {}, {"optimizer": skip_non_finite(sgd(0.1)), "learning_rate": None}, (1, 4), id="skipped steps"
        ),
    ],
)
def test_the_average_matches_numpy_for_every_way_to_train(
    kind: Any, frozen: dict[str, bool], arguments: dict[str, Any], skipped: tuple[int, ...]
) -> None:
    """Six steps; a skipped one counts as a step and does not change the average."""
    x, watch = images(24), Weights()
    x[8 * 1 + np.arange(8 if skipped else 0)] = BAD
    model = resfit.Model(kind(rngs=nnx.Rngs(0)))
    if frozen:
        model.freeze("norm", "conv", **frozen)
    model.compile(**{"optimizer": "sgd", "learning_rate": 0.1, "dispatch": "jit", "ema": DECAY, **arguments})
    fit(model, x, labels(24), epochs=2, shuffle=False, callbacks=[watch])
    expected = expected_average(watch.raw, skipped)
    for average, hoped in zip(model.get_weights("ema"), expected, strict=True):
        np.testing.assert_allclose(average, hoped, rtol=1e-5, atol=1e-6)
    assert any((average != raw).any() for average, raw in zip(model.get_weights("ema"), watch.raw[-1], strict=True))


@pytest.mark.slow
def test_an_average_of_bfloat16_parameters_moves_by_less_than_their_rounding() -> None:
    """A tenth of the distance from 1 to 1 + 2^-5 is less than half the spacing of bfloat16 there, 2^-8."""
    model = compiled(HalfNet(rngs=nnx.Rngs(0)), ema=0.9, learning_rate=0.0)
    fit(model, X, Y, steps_per_epoch=90)  # past the first steps, which forget faster
    ones = [np.ones_like(array) for array in model.get_weights()]
    model.set_weights([array * (1 + 2**-5) for array in ones], averages=ones)
    fit(model, X, Y, steps_per_epoch=20)
    for average in model.get_weights("ema"):
        assert average.dtype == ones[0].dtype
        np.testing.assert_allclose(average.astype(np.float64), 1 + 2**-5 * (1 - 0.9**20), rtol=2**-8)


def test_averages_that_an_earlier_version_kept_in_bfloat16_continue_in_float32() -> None:
    model = compiled(HalfNet(rngs=nnx.Rngs(0)), ema=DECAY)
    dtypes = [leaf.dtype for leaf in state_of(model).leaves]
    narrow = [array.astype(jax.numpy.bfloat16) if array.ndim else array for array in state_of(model).on_host()]
    state_of(model).take_from_host([narrow[i] if i < 4 else array for i, array in enumerate(state_of(model).on_host())])
    assert [leaf.dtype for leaf in state_of(model).leaves] == dtypes
    fit(model, X, Y)


# --- weights that are set ---------------------------------------------------------------------------------------------


def thin_net(seed: int) -> Any:
    return resfit.create_model("resnet20", num_classes=CLASSES, depths=(1,), widths=(4,), in_channels=1, rngs=seed)


def with_averages_elsewhere() -> tuple[resfit.Model, list[np.ndarray]]:
    """Return a model whose averages differ from its weights, as after training, and the averages."""
    model = compiled(thin_net(0), ema=DECAY)
    averages = [array + 1 for array in model.get_weights()]
    model.set_weights(model.get_weights(), averages=averages)
    return model, averages


def set_all(model: resfit.Model, other: Any) -> None:
    model.set_weights(resfit.Model(other).get_weights())


def update(model: resfit.Model, other: Any) -> None:
    nnx.update(model.module, nnx.state(other, (nnx.Param, nnx.BatchStat)))


def load(model: resfit.Model, other: Any) -> None:
    resfit.weights.save(other, "other.safetensors")
    resfit.weights.load(model.module, "other.safetensors")


@pytest.mark.representatives("set_all", "update")
@pytest.mark.parametrize("how", [set_all, update, load])
def test_averages_start_again_at_weights_that_are_set(how: Any) -> None:
    """Statistics that are equal in both networks keep their averages: the assignment does not change them."""
    model, before = with_averages_elsewhere()
    held, other = model.get_weights(), thin_net(7)
    new = resfit.Model(other).get_weights()
    how(model, other)
    expected = [
        array if how is set_all or not np.array_equal(array, old) else average
        for array, old, average in zip(new, held, before, strict=True)
    ]
    assert_same(model.get_weights(), new)
    assert_same(model.get_weights("ema"), expected)


def test_an_assigned_array_restarts_only_its_own_average() -> None:
    model, before = with_averages_elsewhere()
    model.module.head.dense.kernel[...] += 3
    names = state_of(model).layout.visible_names
    changed = {
        name
        for name, old, new in zip(names, before, model.get_weights("ema"), strict=True)
        if not np.array_equal(old, new)
    }
    assert changed == {"head.dense.kernel"}
    np.testing.assert_array_equal(
        model.get_weights("ema")[names.index("head.dense.kernel")], model.module.head.dense.kernel[...]
    )


def test_an_array_assigned_before_a_fit_restarts_its_own_average() -> None:
    """A read of the weights between the assignment and the fit makes no difference."""
    found = []
    for reads in (True, False):
        model, _ = with_averages_elsewhere()
        model.module.head.dense.kernel[...] += 3
        if reads:
            model.get_weights()
        fit(model, images(BATCH), labels(BATCH))
        found.append(model.get_weights("ema"))
    assert_same(*found)


def test_a_module_passed_to_nnx_jit_keeps_its_averages() -> None:
    """nnx.jit replaces every array by another object with the same values."""
    model, before = with_averages_elsewhere()
    kernel = model.module.head.dense.kernel.get_raw_value()
    nnx.jit(lambda module, x: module(x))(model.module, images(2))
    assert model.module.head.dense.kernel.get_raw_value() is not kernel
    assert_same(model.get_weights("ema"), before)


def test_set_weights_takes_averages_and_raises_for_a_model_without_them() -> None:
    model, before = with_averages_elsewhere()
    weights = [array * 2 for array in model.get_weights()]
    model.set_weights(weights, averages=before)
    assert_same(model.get_weights(), weights)
    assert_same(model.get_weights("ema"), before)
    with pytest.raises(ModuleError, match="has shape"):
        model.set_weights(weights, averages=[array[..., :0] for array in before])
    plain = compiled(thin_net(0))
    with pytest.raises(CompileError, match=r"ema=0\.999"):
        plain.set_weights(weights, averages=before)
    assert (model.keeps_averages, plain.keeps_averages) == (True, False)
    assert_same(model.get_weights("ema"), before)


def test_averages_continue_over_what_a_callback_assigns_between_steps() -> None:
    """A mask that is applied after every step is part of the training: the average is that of masked weights."""

    class Masks(resfit.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            self.model.module.head.kernel[0] = 0.0

    model, watch = compiled(ema=DECAY), Weights()
    fit(model, X, Y, epochs=2, callbacks=[watch, Masks()])  # no callback reads what the last one assigns
    index = state_of(model).layout.visible_names.index("head.bias")
    expected = expected_average(watch.raw)[index]
    np.testing.assert_allclose(model.get_weights("ema")[index], expected, rtol=1e-5, atol=1e-6)
    kernel = state_of(model).layout.visible_names.index("head.kernel")
    assert (np.abs(model.get_weights("ema")[kernel][1:] - model.get_weights()[kernel][1:]) > 1e-4).any()


def test_recalibration_does_not_change_the_averages() -> None:
    model, before = with_averages_elsewhere()
    held = model.get_weights()
    resfit.recalibrate(model, images())
    assert any((a != b).any() for a, b in zip(model.get_weights(), held, strict=True))
    assert_same(model.get_weights("ema"), before)


def test_the_module_predicts_with_the_averages_that_were_put_into_it() -> None:
    """The module takes the averages at the end of fit, as with Keras's use_ema."""
    model, averages = with_averages_elsewhere()
    logits = model.predict(images(4), weights="ema", verbose=0)
    model.set_weights(model.get_weights("ema"))
    assert_same(model.get_weights(), averages)
    np.testing.assert_array_equal(model.predict(images(4), verbose=0), logits)
