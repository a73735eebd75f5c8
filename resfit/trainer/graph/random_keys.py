"""Random keys among arrays: NumPy can hold only their numbers."""

from typing import Any

import jax
import jax.numpy as jnp


def is_key(leaf: Any) -> bool:
    """Return True for an array of random keys."""
    return hasattr(leaf, "dtype") and bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def as_numbers(leaf: Any) -> Any:
    """Return the numbers of random keys, and any other array as it is."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def as_key(numbers: Any, like: Any) -> Any:
    """Return the numbers as random keys if `like` holds random keys."""
    if not is_key(like):
        return numbers
    return jax.random.wrap_key_data(jnp.asarray(numbers), impl=jax.random.key_impl(like))
