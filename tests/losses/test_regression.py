"""Losses of Keras by name, against its published definitions in NumPy: y is `y_true`, p is `y_pred`."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
from flax import nnx

from resfit import losses
from resfit.errors import LabelError
from resfit.losses import regression
from tests.helpers import PlainNet, compiled, fit, images

EPSILON = 1e-7
RANDOM = np.random.default_rng(0)
P, Y = RANDOM.normal(size=(2, 7, 3)) * 2
COUNTS, RATES = RANDOM.poisson(2.0, size=(7, 3)).astype(float), RANDOM.uniform(0.1, 4, size=(7, 3))
SIGNS = RANDOM.choice([-1.0, 1.0], size=(7, 3))
SHARES = RANDOM.dirichlet(np.ones(3), size=7)


def unit(a: np.ndarray) -> np.ndarray:
    return a / np.sqrt(np.maximum((a**2).sum(-1, keepdims=True), 1e-12))


def log_of(a: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(a, EPSILON) + 1)


def huber(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    error = np.abs(y - p)
    return np.mean(np.where(error <= 1, 0.5 * error**2, error - 0.5), axis=-1)


def divergence(y: np.ndarray, logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    y, p = np.clip(y, EPSILON, 1), np.clip(p, EPSILON, 1)
    return np.sum(y * np.log(y / p), axis=-1)


DEFINITIONS: dict[str, tuple[np.ndarray, np.ndarray, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "mse": (Y, P, lambda y, p: np.mean((y - p) ** 2, axis=-1)),
    "mean_squared_error": (Y, P, lambda y, p: np.mean((y - p) ** 2, axis=-1)),
    "mae": (Y, P, lambda y, p: np.mean(np.abs(y - p), axis=-1)),
    "mean_absolute_error": (Y, P, lambda y, p: np.mean(np.abs(y - p), axis=-1)),
    "mape": (Y, P, lambda y, p: 100 * np.mean(np.abs((y - p) / np.maximum(np.abs(y), EPSILON)), axis=-1)),
    "mean_absolute_percentage_error": (Y, P, lambda y, p: 100 * np.mean(np.abs((y - p) / y), axis=-1)),
    "msle": (COUNTS, P, lambda y, p: np.mean((log_of(y) - log_of(p)) ** 2, axis=-1)),
    "mean_squared_logarithmic_error": (Y, P, lambda y, p: np.mean((log_of(y) - log_of(p)) ** 2, axis=-1)),
    "huber": (Y, P, huber),
    "log_cosh": (Y, P, lambda y, p: np.mean(np.log(np.cosh(p - y)), axis=-1)),
    "poisson": (COUNTS, RATES, lambda y, p: np.mean(p - y * np.log(p + EPSILON), axis=-1)),
    "hinge": (SIGNS, P, lambda y, p: np.mean(np.maximum(1 - y * p, 0), axis=-1)),
    "cosine_similarity": (Y, P, lambda y, p: -np.sum(unit(y) * unit(p), axis=-1)),
    "kl_divergence": (SHARES, P, divergence),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_each_loss_is_the_definition_of_keras(name: str) -> None:
    y, p, definition = DEFINITIONS[name]
    got = jax.jit(losses.get(name))(p.astype("float32"), y.astype("float32"))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, definition(y, p), rtol=2e-5, atol=1e-6)


def test_every_name_has_a_definition() -> None:
    assert set(regression.ALL) == set(DEFINITIONS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(set(DEFINITIONS) - {"kl_divergence"}))
def test_a_single_output_can_have_targets_without_an_axis_and_other_shapes_raise(name: str) -> None:
    loss, p, y = losses.get(name), np.ones((4, 1)), np.ones(4, "int32")
    assert jax.eval_shape(loss, p, y).shape == (4,)
    with pytest.raises(LabelError, match="Expected the same shape"):
        jax.eval_shape(loss, np.ones((4, 3)), y)


def test_hinge_reads_zero_and_one_as_keras_does() -> None:
    binary = (SIGNS > 0).astype("int32")
    np.testing.assert_array_equal(losses.hinge(P, SIGNS), losses.hinge(P, binary))


def test_kl_divergence_of_certain_targets_is_finite_and_of_one_output_raises() -> None:
    np.testing.assert_allclose(
        losses.kl_divergence(P, np.eye(3)[[0] * 7]), losses.cross_entropy(P, np.zeros(7, "int32")), rtol=1e-5
    )
    with pytest.raises(LabelError, match=r"softmax is always 1.*binary_cross_entropy"):
        losses.kl_divergence(np.zeros((4, 1)), np.zeros(4))


def test_gradients_are_finite_at_zero() -> None:
    zeros = np.zeros((2, 3), np.float32)

    def sums(p: jax.Array) -> dict[str, jax.Array]:
        return {name: losses.get(name)(p, zeros).sum() for name in DEFINITIONS}

    for name, gradient in jax.jit(jax.jacrev(sums))(zeros).items():
        assert np.isfinite(gradient).all(), name


def test_a_model_is_trained_with_a_loss_by_name() -> None:
    targets = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), loss="mae", metrics=["mse"], learning_rate=0.01)
    history = fit(model, images(), targets, epochs=3).history
    assert history["loss"][-1] < history["loss"][0]
    assert set(history) == {"loss", "mse"}
