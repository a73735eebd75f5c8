"""Max pooling and global average pooling."""

import itertools

import jax
import jax.numpy as jnp
from einops import reduce


def max_pool(x: jax.Array, *, window: int = 3, strides: int = 2) -> jax.Array:
    """The maximum over a square window, padded by `window // 2` on both sides, as torchvision's stem has it.

    Args:
        x: images (batch, height, width, channels) of a floating dtype.
        window: side of the window in pixels, odd (default 3).
        strides: step in pixels (default 2).

    Returns:
        (batch, ceil(height / strides), ceil(width / strides), channels).

    Example:
        >>> import jax.numpy as jnp
        >>> max_pool(jnp.arange(5.0).reshape(1, 1, 5, 1)).ravel().tolist()
        [1.0, 3.0, 4.0]
    """
    pad = window // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=-jnp.inf)
    height, width = (-(-size // strides) for size in x.shape[1:3])
    shifted = [
        padded[:, i : i + (height - 1) * strides + 1 : strides, j : j + (width - 1) * strides + 1 : strides, :]
        for i, j in itertools.product(range(window), repeat=2)
    ]
    # Equal to nnx.max_pool in value and gradient (the first of equal values gets it), but that one's gradient is a
    # select-and-scatter: six to ten times slower on a CPU, and refused by XLA's deterministic mode on a GPU.
    pooled = shifted[0]
    for candidate in shifted[1:]:
        pooled = jnp.where((candidate > pooled) | jnp.isnan(candidate), candidate, pooled)
    return pooled


def global_average_pool(x: jax.Array) -> jax.Array:
    """The mean of every channel over all pixels (Lin et al. 2013, arXiv:1312.4400).

    Args:
        x: images (batch, height, width, channels).

    Returns:
        (batch, channels).

    Example:
        >>> import jax.numpy as jnp
        >>> global_average_pool(jnp.arange(4.0).reshape(1, 2, 2, 1)).tolist()
        [[1.5]]
    """
    return reduce(x, "batch height width channels -> batch channels", "mean")
