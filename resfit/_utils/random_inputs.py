"""Random inputs of a network, to compare two functions."""

import jax
import jax.numpy as jnp
import numpy as np


def random_batch(one: jax.ShapeDtypeStruct, rows: int = 2) -> jax.Array:
    """Return random examples: 0 to 255 for uint8, 0 and 1 for other integers, normal for floats.

    Args:
      one: shape and dtype of one example.
      rows: the number of examples.

    Example:
      >>> random_batch(jax.ShapeDtypeStruct((4, 4, 3), jnp.float32), rows=5).shape
      (5, 4, 4, 3)
    """
    draws, shape = np.random.default_rng(0), (rows, *one.shape)
    if jnp.issubdtype(one.dtype, jnp.floating):
        return jnp.asarray(draws.normal(size=shape), one.dtype)
    return jnp.asarray(draws.integers(0, 256 if one.dtype == jnp.uint8 else 2, shape), one.dtype)
