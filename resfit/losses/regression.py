"""Losses for regression."""

import jax
import jax.numpy as jnp

from resfit.losses.labels import same_shape


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
