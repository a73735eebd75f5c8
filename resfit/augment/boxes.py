"""Random rectangles, one for each image of a batch."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from resfit.augment.transform import whole

ATTEMPTS = 10
"""Attempts at a size that fits, as in torchvision and timm."""

DRAWS = 2 * ATTEMPTS + 2
"""Uniform numbers for one box: the area and the ratio of every attempt, then the position."""


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
    """Return random boxes inside an image.

    The share of the image's area is uniform, the ratio of width to height is log-uniform, and the position is uniform.
    Each box is the first of ten attempts that fits, as in torchvision and timm.

    Args:
      uniform: random numbers (n, DRAWS) in [0, 1).
      image: (height, width) of the image.
      largest: (height, width) of the largest box that fits.
      area: the smallest and the largest share of the area.
      ratio: the smallest and the largest width / height.

    Returns:
      (boxes, found): found is (n,) bool, False if no attempt fits.
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
    """Return a mask (n, size) of the pixels in [start, start + length), for (n,) starts and lengths."""
    pixel = jnp.arange(size)[None, :]
    return (pixel >= start[:, None]) & (pixel < (start + length)[:, None])


def mask(boxes: Boxes, image: tuple[int, int]) -> jax.Array:
    """Return a mask (n, height, width, 1) of the pixels inside the boxes."""
    rows = inside(boxes.top, boxes.height, image[0])[:, :, None, None]
    return rows & inside(boxes.left, boxes.width, image[1])[:, None, :, None]
