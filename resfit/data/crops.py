"""Crop boxes in the pixels of the stored image, computed before decoding."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from resfit._utils.checks import is_int
from resfit.errors import DataError

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of the stored image; right and bottom are exclusive."""

Crop = Callable[[int, int], Box]
"""Map (height, width) of an image to the box to read."""

# Evaluation crops the central 224 pixels of an image whose shorter side is 256 (He et al., arXiv 1512.03385).
CENTER = 224 / 256

# Szegedy et al., "Going deeper with convolutions" (arXiv 1409.4842), section 6; torchvision and timm use the same.
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
TRIES = 10


def whole(height: int, width: int) -> Box:
    """Return the box of the whole image."""
    return 0, 0, width, height


def center_crop(height: int, width: int, size: tuple[int, int], share: float = CENTER) -> Box:
    """Return the box that a central crop of `size` covers after the image is resized to `size` divided by `share`.

    For squares and the default, this is "shorter side to 256, central 224 pixels" at any size. Pixels are rounded as in
    torchvision's Resize and CenterCrop.

    Args:
      height: height of the image in pixels.
      width: width of the image in pixels.
      size: (height, width) of the result.
      share: of the shorter side, above 0 and at most 1.

    Example:
      >>> center_crop(256, 512, (224, 224))
      (144.0, 16.0, 368.0, 240.0)
    """
    # The side that is shorter relative to `size` becomes a whole number of pixels; the other side follows.
    scale = max(int(cut / share + 1e-6) / side for cut, side in zip(size, (height, width), strict=True))
    resized = [max(cut, int(side * scale + 1e-6)) for cut, side in zip(size, (height, width), strict=True)]
    top, left = (round((side - cut) / 2) for side, cut in zip(resized, size, strict=True))
    down, right = height / resized[0], width / resized[1]
    return left * right, top * down, (left + size[1]) * right, (top + size[0]) * down


def random_crop(height: int, width: int, draws: np.random.Generator) -> Box:
    """Return a random box of 8 to 100 % of the area and an aspect ratio from 3/4 to 4/3.

    The area and the logarithm of the aspect ratio are uniform. If none of ten boxes fits into the image, the result is
    the largest central box with an allowed aspect ratio.

    Args:
      height: height of the image in pixels.
      width: width of the image in pixels.
      draws: the random generator.
    """
    low, high = map(math.log, ASPECT)
    for area, aspect, down, right in draws.random((TRIES, 4)):
        pixels = height * width * (AREA[0] + (AREA[1] - AREA[0]) * area)
        ratio = math.exp(low + (high - low) * aspect)
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(right * (width - w + 1)), int(down * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def crop_of(
    crop: str | float | None, size: tuple[int, int] | None, key: tuple[int, int] | None, place: tuple[int, ...]
) -> Crop:
    """Return the crop function of one image for a dataset's `crop` argument.

    Args:
      crop: None, "center", "random", or the share of the shorter side that a central crop keeps.
      size: (height, width) of the result; None keeps the size of the image.
      key: (seed, epoch), which determine a random crop together with `place`; None for no random crops.
      place: (row,) of the image, or (shard, row).

    Raises:
      DataError: for a random crop without a key.
    """
    if crop is None or size is None:
        return whole
    if crop == "center":
        return partial(center_crop, size=size)
    if not isinstance(crop, str):
        return partial(center_crop, size=size, share=crop)
    if key is None:
        raise DataError(
            "A dataset with crop='random' was read without a seed and an epoch. Expected crop='random' only in fit, "
            "with shuffle=True and cache=None. Use crop='center' for validation, evaluate and predict."
        )
    # Every image has its own random stream, so threads, batch size and process count do not change the crops.
    return partial(random_crop, draws=np.random.default_rng(np.random.SeedSequence(key, spawn_key=place)))


def output_size(size: Any, crop: Any) -> tuple[int, int] | None:
    """Return a dataset's `size` argument as (height, width), or None.

    Raises:
      DataError: if `size` or `crop` is invalid, or `crop` is given without `size`.
    """
    is_share = isinstance(crop, int | float) and not isinstance(crop, bool) and 0 < crop <= 1
    if crop not in (None, "random", "center") and not is_share:
        raise DataError(
            f"Expected crop to be None, 'random' or 'center', got {crop!r}. A number is the share of the shorter side "
            "that a central crop keeps, above 0 and at most 1."
        )
    if crop is not None and size is None:
        raise DataError(f"Got crop={crop!r} without size. Expected the output size as well, such as size=224.")
    return None if size is None else height_and_width(size)


def height_and_width(size: Any) -> tuple[int, int]:
    """Return a dataset's `size` argument as (height, width).

    Raises:
      DataError: if `size` is neither a positive number of pixels nor a pair of such numbers.
    """
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(is_int(side, 1) for side in sides):
        raise DataError(f"Expected size to be a number of pixels or (height, width), got {size!r}.")
    return int(sides[0]), int(sides[1])
