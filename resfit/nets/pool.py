"""Pooling: maximum, average, blurred, and global average."""

import functools
import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from jax import lax

from resfit._utils.keywords import checked
from resfit.backends.cpu_barrier import materialize_on_cpu, traced_for
from resfit.errors import SpecError


@checked("function arguments")
def max_pool(x: jax.Array, *, window: int = 3, strides: int = 2, padding: tuple[int, int] | None = None) -> jax.Array:
    """Return the maximum over square windows, padded by `window // 2` on both sides as in torchvision's stem.

    Args:
        x: images (batch, height, width, channels) of a floating dtype.
        window: side of the window in pixels, odd (default 3).
        strides: step in pixels (default 2).
        padding: pixels before and after each axis, which never are the maximum (default `window // 2` for both).

    Returns:
        (batch, ceil(height / strides), ceil(width / strides), channels), with the default padding.

    Example:
        >>> import jax.numpy as jnp
        >>> max_pool(jnp.arange(5.0).reshape(1, 1, 5, 1)).ravel().tolist()
        [1.0, 3.0, 4.0]
    """
    before, after = (window // 2, window // 2) if padding is None else padding
    return _max_pool(x, window, strides, (before, after))


# nnx.max_pool has the same values and gradients (the first of equal values gets the gradient). Its gradient is a
# select-and-scatter, which is ten times slower on a CPU and an error in XLA's deterministic mode on a GPU.
@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: jax.Array, window: int, strides: int, padding: tuple[int, int]) -> jax.Array:
    if traced_for("onnx"):  # the same values by the one operation that ONNX has for it
        pads = [(0, 0), padding, padding, (0, 0)]
        largest: jax.Array = lax.reduce_window(
            x, -jnp.inf, lax.max, (1, window, window, 1), (1, strides, strides, 1), pads
        )
        return largest
    return _largest(x, window, strides, padding)[0]


@_max_pool.defjvp
def _max_pool_jvp(
    window: int, strides: int, padding: tuple[int, int], primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Keep the position of each maximum, one byte each; JAX would keep one comparison for each pixel of a window."""
    (x,), (tangent,) = primals, tangents
    pooled, which = materialize_on_cpu(
        _largest(x, window, strides, padding)
    )  # in one pass: both halves of every comparison

    # A checkpoint, so that the gradient keeps `which` and compares again. No barrier is needed: prevent_cse=False.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def picked(which: jax.Array, tangent: jax.Array) -> jax.Array:
        # On a CPU, XLA's code for a sum of many bfloat16 numbers takes several times as long as that for float32.
        sums = jnp.promote_types(tangent.dtype, jnp.float32) if traced_for("cpu") else tangent.dtype
        shifted = _shifted(tangent.astype(sums), window, strides, padding, 0)
        parts = [jnp.where(which == i, part, 0) for i, part in enumerate(shifted)]
        return functools.reduce(jnp.add, parts).astype(tangent.dtype)

    return pooled, picked(which, tangent)


def _largest(x: jax.Array, window: int, strides: int, padding: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Return the first of the largest values in each window, and its position in the window, row by row."""
    largest, *others = _shifted(x, window, strides, padding, -jnp.inf)
    number = np.min_scalar_type(window * window)
    which = jnp.zeros(largest.shape, number)
    for i, candidate in enumerate(others, 1):
        larger = (candidate > largest) | jnp.isnan(candidate)
        largest = jnp.where(larger, candidate, largest)
        which = jnp.where(larger, number.type(i), which)
    return largest, which


def _shifted(x: jax.Array, window: int, strides: int, padding: tuple[int, int], outside: float) -> list[jax.Array]:
    """Return, for each position in the window, row by row, the pixels under it at every step."""
    padded = jnp.pad(x, ((0, 0), padding, padding, (0, 0)), constant_values=outside)
    height, width = ((size - window) // strides + 1 for size in padded.shape[1:3])
    return [
        padded[:, i : i + (height - 1) * strides + 1 : strides, j : j + (width - 1) * strides + 1 : strides, :]
        for i, j in itertools.product(range(window), repeat=2)
    ]


@checked("function arguments")
def average_pool(x: jax.Array, *, strides: int | tuple[int, int] = 2) -> jax.Array:
    """Return the mean over windows of 2x2 pixels; windows at the right and lower edge average the pixels inside.

    Equals `AvgPool2d(2, strides, ceil_mode=True, count_include_pad=False)` of PyTorch. With strides of 1 the windows
    at the edge include one pixel of zeros, as in timm's `AvgPool2dSame`.

    Args:
        x: images (batch, height, width, channels).
        strides: step in pixels, for both axes or for each, 1 or 2 (default 2).

    Returns:
        (batch, ceil(height / strides), ceil(width / strides), channels).

    Example:
        >>> import jax.numpy as jnp
        >>> average_pool(jnp.arange(3.0).reshape(1, 1, 3, 1)).ravel().tolist()
        [0.5, 2.0]
    """
    steps = (strides, strides) if isinstance(strides, int) else strides
    for axis, step in zip((1, 2), steps, strict=True):
        size = x.shape[axis]
        after = jnp.pad(x, [(0, int(i == axis)) for i in range(4)])
        total = lax.slice_in_dim(after, 0, size, step, axis) + lax.slice_in_dim(after, 1, size + 1, step, axis)
        counts = np.full(total.shape[axis], 2.0, np.float32)
        if step > 1 and size % 2:
            counts[-1] = 1.0
        x = total * (1 / counts).astype(x.dtype).reshape([-1 if i == axis else 1 for i in range(4)])
    return x


@checked("function arguments")
def blur_pool(x: jax.Array, *, strides: int = 2) -> jax.Array:
    """Blur by (1, 2, 1) / 4 along both axes and keep every stride-th pixel (Zhang 2019, arXiv:1904.11486).

    The image is reflected at the edges, as in timm's `BlurPool2d`.

    Args:
        x: images (batch, height, width, channels) of at least two pixels a side.
        strides: step in pixels (default 2).

    Returns:
        (batch, ceil(height / strides), ceil(width / strides), channels).

    Example:
        >>> import jax.numpy as jnp
        >>> blur_pool(jnp.eye(4)[1].reshape(1, 1, 4, 1).repeat(2, axis=1)).ravel().tolist()
        [0.5, 0.25]
    """
    for axis in (1, 2):
        size = x.shape[axis]
        padded = jnp.pad(x, [(int(i == axis),) * 2 for i in range(4)], mode="reflect")
        left, middle, right = (lax.slice_in_dim(padded, i, size + i, strides, axis) for i in range(3))
        x = (left + 2 * middle + right) / 4
    return x


# The pooling of anti-aliased networks, by the value of `ResNetSpec.antialias`.
ANTIALIAS: Mapping[str, Callable[..., jax.Array]] = MappingProxyType({"avg": average_pool, "blur": blur_pool})


def antialias_kind(value: Any) -> str | None:
    """Return a key of `ANTIALIAS`, or None.

    Args:
        value: a key, None, or a boolean from a file of an earlier version: True means `"blur"`, False means None.

    Raises:
        SpecError: for any other value.
    """
    if isinstance(value, bool):
        value = "blur" if value else None
    if value is not None and value not in tuple(ANTIALIAS):
        raise SpecError(f"A spec or block received antialias={value!r}. Expected one of {[None, *ANTIALIAS]}.")
    kind: str | None = value
    return kind


@checked("function arguments")
def global_average_pool(x: jax.Array) -> jax.Array:
    """Return the mean of every channel over all pixels (Lin et al. 2013, arXiv:1312.4400).

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
