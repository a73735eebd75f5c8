"""Random rectangles, one for each image of a batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_ATTEMPTS = 10  # as torchvision and timm


class Boxes(NamedTuple):
    """Rectangles in whole pixels: (batch,) int32 each."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


def draw_sizes(
    key: jax.Array,
    n: int,
    image: tuple[int, int],
    largest: tuple[int, int],
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Heights and widths with a uniform share of the image's area and a log-uniform ratio of width to height.

    Each image has ten attempts, of which the first that fits is taken, as in torchvision and timm.

    Args:
      key: of the draw.
      n: how many.
      image: its (height, width).
      largest: the (height, width) that still fits.
      area: smallest and largest share.
      ratio: smallest and largest width / height.

    Returns:
      (heights, widths, found): (n,) int32, int32, and bool, which is False where no attempt fitted.
    """
    area_key, ratio_key = jax.random.split(key)
    pixels = image[0] * image[1] * jax.random.uniform(area_key, (n, _ATTEMPTS), minval=area[0], maxval=area[1])
    low, high = jnp.log(jnp.asarray(ratio, jnp.float32))
    ratios = jnp.exp(jax.random.uniform(ratio_key, (n, _ATTEMPTS), minval=low, maxval=high))
    heights = jnp.round(jnp.sqrt(pixels / ratios)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(pixels * ratios)).astype(jnp.int32)
    fits = (heights > 0) & (widths > 0) & (heights <= largest[0]) & (widths <= largest[1])
    first = fits.argmax(axis=1, keepdims=True)

    def taken(values: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values, first, axis=1)[:, 0]

    return taken(heights), taken(widths), taken(fits)


def place(key: jax.Array, heights: jax.Array, widths: jax.Array, image: tuple[int, int]) -> Boxes:
    """Boxes of given sizes, (n,) int32, anywhere inside images of (height, width)."""
    top_key, left_key = jax.random.split(key)
    top = jax.random.randint(top_key, heights.shape, 0, image[0] - heights + 1)
    left = jax.random.randint(left_key, widths.shape, 0, image[1] - widths + 1)
    return Boxes(top, left, heights, widths)


def inside(start: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """Which of `size` pixels lie in [start, start + length): (n, size) bool from two (n,)."""
    pixel = jnp.arange(size)[None, :]
    return (pixel >= start[:, None]) & (pixel < (start + length)[:, None])


def mask(boxes: Boxes, image: tuple[int, int]) -> jax.Array:
    """(n, height, width, 1) bool: which pixels the boxes cover."""
    rows = inside(boxes.top, boxes.height, image[0])[:, :, None, None]
    return rows & inside(boxes.left, boxes.width, image[1])[:, None, :, None]
