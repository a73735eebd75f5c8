"""Random erasing of a rectangle."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from resfit._utils.checks import is_number
from resfit._utils.keywords import checked
from resfit.augment.boxes import DRAWS, mask, random_boxes
from resfit.augment.masks import fill_argument, filling
from resfit.augment.transform import (
    ImageTransform,
    check_fill,
    draw,
    image_transform,
    like,
    require_range,
    require_share,
)
from resfit.errors import CompileError, DataError


@checked("function arguments")
def random_erasing(
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 3.3),
    fill: float | tuple[float, ...] | str = 0.0,
    mask_fill: int | None = None,
) -> ImageTransform:
    """Return an augmentation that fills a random rectangle of each image with a probability.

    The rectangles are those of `RandomErasing` in torchvision and timm. Those work on standardized images, where zero
    is the mean color. This augmentation runs before `preprocess`, where zero is black for uint8 and float images.
    For the same result, pass the mean of your data, one value per channel. Source: Zhong et al. (arXiv 1708.04896).

    Args:
      probability: the probability of erasing, for each image.
      area: the smallest and the largest share of the image's area.
      ratio: the smallest and the largest width / height.
      fill: a value in the units of the images, one value per channel, or "noise" for a random value of every pixel and
        channel. Noise is uniform over 0 to 255 for uint8, and over 256 steps from 0 to 1 for floats.
      mask_fill: the label of erased pixels of masks, such as 255 with `CrossEntropy(ignore_index=255)`. None keeps
        their labels, as torchvision does.

    Raises:
      CompileError: for any other value.

    Example:
      >>> x = jnp.ones((1, 32, 32, 3))
      >>> erased, _ = random_erasing(probability=1.0, area=(0.25, 0.25), ratio=(1.0, 1.0))(jax.random.key(0), x, None)
      >>> 1 - erased.mean()
      Array(0.25, dtype=float32)
    """
    require_share("random_erasing", "probability", probability)
    require_range("random_erasing", "area", area, 1)
    require_range("random_erasing", "ratio", ratio, math.inf)
    if fill != "noise":
        values: Sequence[Any] = fill if isinstance(fill, tuple | list) else (fill,)
        if not values or not all(is_number(value) and math.isfinite(value) for value in values):
            raise CompileError(
                f"augment.random_erasing got fill={fill!r}. Expected a number, one per channel, or 'noise'."
            )
        fill = tuple(float(value) for value in values)
    arguments = {"probability": probability, "area": tuple(area), "ratio": tuple(ratio), "fill": fill}
    erasing = None if mask_fill is None else _erase_masks
    return image_transform(_random_erasing, erasing, **arguments, **fill_argument("random_erasing", mask_fill))


def _random_erasing(
    key: jax.Array,
    x: jax.Array,
    probability: float,
    area: tuple[float, float],
    ratio: tuple[float, float],
    fill: tuple[float, ...] | str,
    mask_fill: int | None = None,
) -> jax.Array:
    box_key, fill_key = jax.random.split(key) if fill == "noise" else (key, key)
    erased = _erased(box_key, x.shape, probability, area, ratio)
    return jnp.where(erased, _filling(fill_key, x, fill), x)


def _erase_masks(
    key: jax.Array,
    masks: jax.Array,
    probability: float,
    area: tuple[float, float],
    ratio: tuple[float, float],
    fill: tuple[float, ...] | str,
    mask_fill: int,
) -> jax.Array:
    box_key = jax.random.split(key)[0] if fill == "noise" else key
    erased = _erased(box_key, masks.shape, probability, area, ratio)
    return jnp.where(erased, filling("random_erasing", masks, mask_fill), masks)


def _erased(
    key: jax.Array,
    shape: tuple[int, ...],
    probability: float,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> jax.Array:
    """Return True for the pixels to erase, (n, height, width, 1)."""
    n, height, width, _ = shape
    uniform = draw(key, n, 1 + DRAWS)
    # A rectangle is smaller than the image in both directions.
    boxes, found = random_boxes(uniform[:, 1:], (height, width), (height - 1, width - 1), area, ratio)
    erased = found & (uniform[:, 0] < probability)
    return mask(boxes, (height, width)) & erased[:, None, None, None]


def _filling(key: jax.Array, x: jax.Array, fill: tuple[float, ...] | str) -> jax.Array:
    """Return the fill values, in the shape of x or (1, 1, 1, channels)."""
    if isinstance(fill, str):
        # Splitting random words into bytes is three times faster than drawing bytes.
        *shape, channels = x.shape
        words = jax.random.bits(key, (*shape, -(-channels // 4)), jnp.uint32)
        noise = rearrange(jax.lax.bitcast_convert_type(words, jnp.uint8), "n h w words bytes -> n h w (words bytes)")
        noise = noise[..., :channels]
        return noise if x.dtype == jnp.uint8 else noise.astype(x.dtype) / 255
    if len(fill) not in (1, x.shape[3]):
        raise DataError(
            f"augment.random_erasing got fill={fill} for images of shape {x.shape}. Expected one value, or one for "
            f"each of the {x.shape[3]} channels."
        )
    check_fill("random_erasing", x, *fill)
    return like(jnp.broadcast_to(jnp.asarray(fill, jnp.float32), (1, 1, 1, x.shape[3])), x)
