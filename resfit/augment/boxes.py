"""Random rectangles, one for each image of a batch."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from resfit.augment.transform import whole

ATTEMPTS = 10
"""At a size that fits, as in torchvision and timm."""

DRAWS = 2 * ATTEMPTS + 2
"""Uniform numbers for one box: the area and the ratio of every attempt, then the place."""


class Boxes(NamedTuple):
    """Rectangles in whole pixels: (batch,) int32 each."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


def random_boxes(
    uniform: jax.Array,
    image: tuple[int, int],
    largest: tuple[int, int],
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[Boxes, jax.Array]:
    """Boxes anywhere inside, of a uniform share of the image's area and a log-uniform ratio of width to height.

    Each has ten attempts, of which the first that fits is taken, as in torchvision and timm.

    Args:
      uniform: (n, DRAWS) in [0, 1).
      image: its (height, width).
      largest: the (height, width) that still fits.
      area: smallest and largest share.
      ratio: smallest and largest width / height.

    Returns:
      (boxes, found): found is (n,) bool, and False where no attempt fitted.
    """
    areas, ratios, corners = jnp.split(uniform, (ATTEMPTS, 2 * ATTEMPTS), axis=1)
    pixels = image[0] * image[1] * (area[0] + (area[1] - area[0]) * areas)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratios = jnp.exp(low + (high - low) * ratios)
    heights = jnp.round(jnp.sqrt(pixels / ratios)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(pixels * ratios)).astype(jnp.int32)
    fits = (heights > 0) & (widths > 0) & (heights <= largest[0]) & (widths <= largest[1])
    first = fits.argmax(axis=1, keepdims=True)
    height, width, found = (jnp.take_along_axis(each, first, axis=1)[:, 0] for each in (heights, widths, fits))
    top, left = whole(corners[:, 0], image[0] - height + 1), whole(corners[:, 1], image[1] - width + 1)
    return Boxes(top, left, height, width), found


def inside(start: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """Which of `size` pixels lie in [start, start + length): (n, size) bool from two (n,)."""
    pixel = jnp.arange(size)[None, :]
    return (pixel >= start[:, None]) & (pixel < (start + length)[:, None])


def mask(boxes: Boxes, image: tuple[int, int]) -> jax.Array:
    """(n, height, width, 1) bool: which pixels the boxes cover."""
    rows = inside(boxes.top, boxes.height, image[0])[:, :, None, None]
    return rows & inside(boxes.left, boxes.width, image[1])[:, None, :, None]
