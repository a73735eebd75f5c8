"""Gradient accumulation: a batch in slices gives the whole batch's update."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from resfit.errors import CompileError
from tests.helpers import PlainNet, assert_close, compiled, fewer_examples, fit, images, labels, values


def trained(slices: int, n: int, **arguments: Any) -> tuple[Any, Any]:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), gradient_accumulation_steps=slices, **arguments)
    weight = np.random.default_rng(3).uniform(0, 2, n).astype(np.float32)
    history = fit(model, images(n), labels(n), sample_weight=weight, epochs=2)
    return values(model.module), history.history


@functools.cache
def whole(n: int) -> tuple[Any, Any]:
    """Return the outcome of the same training without slices."""
    return trained(1, n)


@pytest.mark.representatives("3-20")
@pytest.mark.parametrize(
    ("slices", "n"), [(3, 20), (100, 8), *(pytest.param(k, 20, marks=pytest.mark.slow) for k in (2, 4, 8, 100))]
)
def test_slices_sum_to_the_whole_batch_also_for_partial_and_weighted_batches(slices: int, n: int) -> None:
    """Twenty examples in batches of eight: three slices divide neither the batches nor the tail of four."""
    weights, history = whole(n)
    sliced, found = trained(slices, n)
    assert_close(sliced, weights, 2e-6)
    assert_close(found, history, 1e-5)


@pytest.mark.slow
@fewer_examples(4)
@given(n=st.integers(1, 17), slices=st.integers(2, 5))
def test_slices_hold_all_examples_for_any_number_of_examples(n: int, slices: int) -> None:
    assert_close(trained(slices, n)[0], whole(n)[0], 2e-6)


def test_slices_of_a_sharded_batch_sum_to_the_whole_batch() -> None:
    assert_close(trained(2, 16, dispatch="sharded")[0], whole(16)[0], 1e-5)


@pytest.mark.slow
def test_batchnorm_normalizes_each_slice_and_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="resfit")
    sliced, together = compiled(gradient_accumulation_steps=2), compiled()
    for model in (sliced, together):
        fit(model, images(8), labels(8))
    assert not np.allclose(sliced.module.norm.mean, together.module.norm.mean, rtol=1e-3)
    assert "BatchNorm over each of 2 slices" in caplog.text


def test_slices_share_no_dropout_mask() -> None:
    class Noisy(nnx.Module):
        """A network whose output is a dropout mask."""

        def __init__(self, *, rngs: nnx.Rngs) -> None:
            self.scale = nnx.Param(jax.numpy.ones(()))
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.dropout(jax.numpy.ones((x.shape[0], 64))) * self.scale[...]

    seen: list[np.ndarray] = []

    def loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
        jax.debug.callback(lambda a: seen.append(np.array(a)), jax.lax.stop_gradient(outputs))
        return outputs.sum(axis=1)

    model = compiled(Noisy(rngs=nnx.Rngs(0)), gradient_accumulation_steps=2, loss=loss, metrics=None)
    model.fit(images(8), labels(8), batch_size=8, verbose=0)
    jax.effects_barrier()
    masks = np.concatenate(seen) > 0
    assert len(seen) == 2
    assert len({mask.tobytes() for mask in masks}) == 8


@pytest.mark.parametrize("slices", [0, -1, 1.5, True])
def test_an_invalid_number_of_slices_raises(slices: Any) -> None:
    with pytest.raises(CompileError, match="gradient_accumulation_steps"):
        compiled(gradient_accumulation_steps=slices)
