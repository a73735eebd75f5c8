"""Setting weights: the arrays change; optimizer, counters, learning rate and programs stay."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.callbacks import Callback
from resfit.errors import StepFailed
from tests.helpers import CLASSES, PlainNet, TinyNet, assert_close, assert_same, compiled, fit, images, labels, state_of


class NumPyNet(nnx.Module):
    """A module with NumPy arrays, which the test writes to in place."""

    def __init__(self) -> None:
        self.kernel = nnx.Param(np.zeros((64, CLASSES), np.float32))
        self.scale = nnx.data(np.ones(CLASSES, np.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], -1) @ self.kernel[...] * self.scale[None]


def write_the_kernel(net: NumPyNet) -> None:
    net.kernel[...] = 3.0


def write_the_raw_value(net: NumPyNet) -> None:
    net.kernel.get_raw_value()[...] = 3.0


def write_the_attribute(net: NumPyNet) -> None:
    net.kernel[...] = 1.0
    net.scale[...] = 3.0


def assign_and_write(net: NumPyNet) -> None:
    array = np.zeros((64, CLASSES), np.float32)
    net.kernel.set_raw_value(array)
    array[...] = 3.0


@pytest.mark.parametrize("write", [write_the_kernel, write_the_raw_value, write_the_attribute, assign_and_write])
def test_numpy_arrays_of_a_module_that_are_written_in_place_are_used_at_once(write: Any) -> None:
    net = NumPyNet()
    model = compiled(net, ema=0.9)
    x = images(4)
    np.testing.assert_array_equal(model.predict(x, verbose=0), 0)
    write(net)
    expected = np.broadcast_to(3 * x.reshape(4, -1).sum(1, keepdims=True), (4, CLASSES))
    for weights in ("raw", "ema"):
        np.testing.assert_allclose(model.predict(x, verbose=0, weights=weights), expected, rtol=1e-4, atol=1e-4)


def test_a_state_does_not_share_memory_with_the_numpy_arrays_of_the_module() -> None:
    net = NumPyNet()
    model = compiled(net)
    fit(model, images(8), labels(8))
    trained = model.get_weights()
    array = np.zeros((64, CLASSES), np.float32)
    model.set_weights([array, np.ones(CLASSES, np.float32)])
    array[...] = 5.0
    np.testing.assert_array_equal(model.get_weights()[0], 0)
    assert (trained[0] != 0).any()


def test_optimizer_step_counter_and_learning_rate_continue_after_weights_are_set() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    fit(model)
    model.learning_rate = 0.025
    n = state_of(model).layout.n_model
    before = [np.array(leaf) for leaf in state_of(model).leaves[n:]]
    model.set_weights([array + 1 for array in model.get_weights()])
    model.module.head.bias[...] += 1
    model.get_weights()
    assert_same([np.array(leaf) for leaf in state_of(model).leaves[n:]], before)
    assert model.learning_rate == np.float32(0.025)


def test_a_learning_rate_that_was_set_survives_a_step_that_destroys_the_state() -> None:
    class Loses(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            for leaf in state_of(self.model).leaves:
                leaf.delete()

    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    model.learning_rate = 0.025
    with pytest.raises(StepFailed, match="start again, as after compile"):
        fit(model, callbacks=[Loses()])
    assert model.learning_rate == np.float32(0.025)
    fit(model)


def test_a_state_that_a_step_failed_to_compute_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed asynchronous step returns arrays that raise its error when they are read."""

    def fails(arrays: Any) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: the step failed")

    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    fit(model)
    held = model.get_weights()
    assert not state_of(model).recover()
    with monkeypatch.context() as patched:
        patched.setattr(jax, "block_until_ready", fails)
        assert state_of(model).recover()
    assert state_of(model).steps() == 0
    assert_same(model.get_weights(), held)


@pytest.mark.slow
@pytest.mark.optimized  # one device and four return the same bits of optimized code alone
@pytest.mark.parametrize("kernels", ["xla", "auto"])
def test_compiled_programs_hold_no_weights(kernels: str) -> None:
    """Evaluation and prediction of a model whose weights are set match a model that was built with these weights."""
    x, y = images(8), labels(8)
    used, born = (compiled(TinyNet(rngs=nnx.Rngs(seed)), cpu_kernels=kernels) for seed in (0, 7))
    used.evaluate(x, y, verbose=0)
    used.predict(x, verbose=0)
    used.set_weights(born.get_weights())
    assert used.evaluate(x, y, verbose=0) == born.evaluate(x, y, verbose=0)
    assert_same(used.predict(x, verbose=0), born.predict(x, verbose=0))
    # A model without compile predicts on all devices: another program, with other last bits on some processors.
    assert_close(used.predict(x, verbose=0), resfit.Model(used.module).predict(x, verbose=0), 1e-5)
