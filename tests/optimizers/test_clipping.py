"""Clipping by the global norm and by unit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resfit import optimizers
from resfit.errors import CompileError

PARAMS = {"kernel": jnp.arange(1.0, 7.0).reshape(3, 2) / 10, "bias": jnp.array([0.1, -0.2])}


def clipped(gradients: Any, **arguments: Any) -> Any:
    """Return the gradients as an optimizer receives them, by one step of SGD with learning rate 1."""
    optimizer = optimizers.clip(optax.sgd(1.0), **arguments)
    updates, _ = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
    return jax.tree.map(lambda u: -np.asarray(u), updates)


def gradients(scale: float) -> Any:
    kernel = np.array([[3.0, 0.1], [-2.0, 0.2], [1.0, 0.1]], np.float32)
    return {"kernel": np.float32(scale) * kernel, "bias": np.float32(scale) * np.array([5.0, -1.0], np.float32)}


def norm(tree: Any) -> float:
    return float(np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(tree))))


@given(scale=st.floats(1e-3, 1e3), limit=st.floats(0.01, 100))
def test_the_global_norm_never_exceeds_its_limit_and_the_direction_is_kept(scale: float, limit: float) -> None:
    before, after = gradients(scale), clipped(gradients(scale), norm=limit)
    share = min(1.0, limit / norm(before))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(share * a, b, rtol=1e-5), before, after)


@given(scale=st.floats(1e-3, 1e3), limit=st.floats(0.01, 1))
def test_adaptive_clipping_limits_the_gradient_of_each_unit_by_its_weights(scale: float, limit: float) -> None:
    before, after = gradients(scale), clipped(gradients(scale), adaptive=limit)
    for unit in range(2):
        g, w = np.asarray(before["kernel"])[:, unit], np.asarray(PARAMS["kernel"])[:, unit]
        share = min(1.0, limit * np.linalg.norm(w) / np.linalg.norm(g))
        np.testing.assert_allclose(after["kernel"][:, unit], share * g, rtol=1e-5)
    np.testing.assert_array_equal(after["bias"], before["bias"])


def test_adaptive_clipping_precedes_the_global_norm() -> None:
    alone = clipped(gradients(10.0), adaptive=0.1)
    both = clipped(gradients(10.0), adaptive=0.1, norm=1.0)
    assert norm(alone) > 1.0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a / norm(alone), b, rtol=1e-5), alone, both)


@pytest.mark.parametrize("arguments", [{"norm": 1.0}, {"adaptive": 0.01}, {"norm": 1.0, "adaptive": 0.01}])
def test_the_learning_rate_of_a_clipped_optimizer_is_found(arguments: Any) -> None:
    state = optimizers.clip(optimizers.sgd(0.25), **arguments).init(PARAMS)
    index = optimizers.index_of_rate(state)
    assert index is not None
    assert float(jax.tree.leaves(state)[index]) == 0.25


def test_weight_decay_is_not_clipped() -> None:
    optimizer = optimizers.clip(optimizers.sgd(1.0, momentum=0.0, weight_decay=10.0), norm=1e-6)
    updates, _ = optimizer.update(gradients(1.0), optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["kernel"], -10 * PARAMS["kernel"], rtol=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "arguments", "words"),
    [
        (optax.sgd(0.1), {}, "neither norm nor adaptive"),
        (optax.sgd(0.1), {"norm": 0.0}, "norm=0.0"),
        (optax.sgd(0.1), {"adaptive": -1.0}, "adaptive=-1.0"),
        (optax.sgd(0.1), {"norm": float("inf")}, "norm=inf"),
        ("sgd", {"norm": 1.0}, "got 'sgd'.*optimizers.sgd"),
    ],
)
def test_invalid_clipping_raises(optimizer: Any, arguments: Any, words: str) -> None:
    with pytest.raises(CompileError, match=words):
        optimizers.clip(optimizer, **arguments)
