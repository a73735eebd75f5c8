"""Losses of Keras for regression, and for a margin or a distribution: each the mean over the outputs of an example.

`cosine_similarity` and `kl_divergence` read the last axis, as in Keras: of dense outputs, that of each pixel.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from resfit._utils.keywords import checked
from resfit.errors import LabelError
from resfit.losses.labels import same_shape
from resfit.losses.pixels import over_pixels

_EPSILON = 1e-7  # of Keras, in denominators and logarithms


@checked("loss arguments")
def mean_squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the squared error of each example, averaged over its outputs, as in Keras and PyTorch.

    `optax.l2_loss` is half of it.

    Args:
      outputs: (batch,) or (batch, outputs).
      targets: the same shape, or (batch,) for outputs (batch, 1).

    Returns:
      (batch,) float32.

    Example:
      >>> mean_squared_error(jnp.array([[1.0], [3.0]]), jnp.array([1.0, 1.0]))
      Array([0., 4.], dtype=float32)
    """
    outputs, targets = same_shape(outputs, targets)
    return jnp.square(outputs - targets).mean(axis=1)


@checked("loss arguments")
def mean_absolute_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the absolute error of each example, averaged over its outputs.

    Args:
      outputs: as in `mean_squared_error`, and so in all losses below.
      targets: as in `mean_squared_error`.

    Example:
      >>> mean_absolute_error(jnp.array([[1.0], [3.0]]), jnp.array([1.0, 1.0]))
      Array([0., 2.], dtype=float32)
    """
    outputs, targets = same_shape(outputs, targets)
    return jnp.abs(outputs - targets).mean(axis=1)


@checked("loss arguments")
def mean_absolute_percentage_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the absolute error of each example in percent of the target, averaged over its outputs.

    Example:
      >>> mean_absolute_percentage_error(jnp.array([[1.0], [3.0]]), jnp.array([1.0, 2.0]))
      Array([ 0., 50.], dtype=float32)
    """
    outputs, targets = same_shape(outputs, targets)
    return 100 * jnp.mean(jnp.abs(outputs - targets) / jnp.maximum(jnp.abs(targets), _EPSILON), axis=1)


@checked("loss arguments")
def mean_squared_logarithmic_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the squared difference of log(1 + value) of each example, averaged over its outputs.

    Negative values count as 0.
    """
    outputs, targets = (jnp.log1p(jnp.maximum(values, _EPSILON)) for values in same_shape(outputs, targets))
    return jnp.square(outputs - targets).mean(axis=1)


@checked("loss arguments")
def huber(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return half the squared error up to an error of 1, linear beyond, averaged over the outputs of an example.

    For another limit use a function of `optax.huber_loss(outputs, labels, delta)`.
    """
    return jnp.mean(optax.huber_loss(*same_shape(outputs, targets)), axis=1)


@checked("loss arguments")
def log_cosh(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the logarithm of the hyperbolic cosine of the error, averaged over the outputs of an example."""
    return jnp.mean(optax.log_cosh(*same_shape(outputs, targets)), axis=1)


@checked("loss arguments")
def poisson(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return output - target * log(output), averaged over the outputs of an example.

    The outputs are expected counts: the module must end with a function such as `jax.nn.softplus`, which makes them
    positive. The loss of a negative output is NaN.
    """
    outputs, targets = same_shape(outputs, targets)
    return jnp.mean(outputs - targets * jnp.log(outputs + _EPSILON), axis=1)


@checked("loss arguments")
def hinge(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return max(1 - target * output, 0), averaged over the outputs of an example.

    Args:
      outputs: scores of any size, not probabilities.
      targets: 0 and 1, or -1 and 1, in the shape of the outputs.

    Example:
      >>> hinge(jnp.array([[0.5], [2.0]]), jnp.array([0, 1]))
      Array([1.5, 0. ], dtype=float32)
    """
    outputs, targets = same_shape(outputs, targets)
    return jnp.mean(optax.hinge_loss(outputs, jnp.where(targets == 0, -1, targets)), axis=1)


@checked("loss arguments")
def cosine_similarity(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the cosine of the angle between outputs and targets, negated: -1 is best.

    Example:
      >>> cosine_similarity(jnp.array([[3.0, 4.0]]), jnp.array([[6.0, 8.0]]))
      Array([-1.], dtype=float32)
    """
    return over_pixels(_cosine_of_rows, outputs, targets)


def _cosine_of_rows(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.negative(optax.cosine_similarity(*same_shape(outputs, targets), epsilon=1e-12))


@checked("loss arguments")
def kl_divergence(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the Kullback-Leibler divergence of the predicted distribution from the target distribution.

    Args:
      logits: (batch, classes), or dense, see `over_pixels`. The predicted distribution is their softmax.
      targets: (batch, classes) probabilities, which sum to one.

    Raises:
      LabelError: for a single output, whose softmax is always one.
    """
    return over_pixels(_divergence_of_rows, logits, targets)


def _divergence_of_rows(logits: jax.Array, targets: jax.Array) -> jax.Array:
    logits, targets = same_shape(logits, targets)
    if logits.shape[1] == 1:
        raise LabelError(
            "kl_divergence got one output per example, whose softmax is always 1. Expected one output per class. For a "
            "single output use loss='binary_cross_entropy'."
        )
    divergence: jax.Array = optax.kl_divergence(jax.nn.log_softmax(logits), targets)
    return divergence


ALL: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "mean_squared_error": mean_squared_error,
    "mse": mean_squared_error,
    "mean_absolute_error": mean_absolute_error,
    "mae": mean_absolute_error,
    "mean_absolute_percentage_error": mean_absolute_percentage_error,
    "mape": mean_absolute_percentage_error,
    "mean_squared_logarithmic_error": mean_squared_logarithmic_error,
    "msle": mean_squared_logarithmic_error,
    "huber": huber,
    "log_cosh": log_cosh,
    "poisson": poisson,
    "hinge": hinge,
    "cosine_similarity": cosine_similarity,
    "kl_divergence": kl_divergence,
}
"""The losses of this module by name, with the short names of Keras."""
