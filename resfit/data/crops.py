"""Which part of an image is looked at: boxes in its own pixels, before anything is decoded."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from resfit._utils.checks import is_int
from resfit.errors import DataError

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of the image as it is stored; right and bottom are not part of it."""

Crop = Callable[[int, int], Box]
"""(height, width) of an image -> the box to look at."""

# Of an image whose shorter side is 256, networks are evaluated on the 224 in the middle (He et al., arXiv 1512.03385).
CENTER = 224 / 256

# Szegedy et al., "Going deeper with convolutions" (arXiv 1409.4842), section 6, as torchvision and timm have it.
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
TRIES = 10


def whole(height: int, width: int) -> Box:
    """All of it."""
    return 0, 0, width, height


def center_crop(height: int, width: int, size: tuple[int, int]) -> Box:
    """What `size` pixels in the middle show once the image is resized to 256/224 of `size`.

    For squares that is the shorter side to 256 and the centre 224 pixels, at any size; whole pixels are chosen as
    torchvision's Resize and CenterCrop choose them.

    Args:
      height: of the image, in pixels.
      width: likewise.
      size: (height, width) of what comes out.

    Example:
      >>> center_crop(256, 512, (224, 224))
      (144.0, 16.0, 368.0, 240.0)
    """
    # The side that is shorter, for its part of the size, becomes a whole number of pixels; the other one follows it.
    scale = max(int(cut / CENTER) / side for cut, side in zip(size, (height, width), strict=True))
    resized = [max(cut, int(side * scale + 1e-6)) for cut, side in zip(size, (height, width), strict=True)]
    top, left = (round((side - cut) / 2) for side, cut in zip(resized, size, strict=True))
    down, right = height / resized[0], width / resized[1]
    return left * right, top * down, (left + size[1]) * right, (top + size[0]) * down


def random_crop(height: int, width: int, draws: np.random.Generator) -> Box:
    """A box of 8 to 100 % of the area and an aspect ratio from 3/4 to 4/3, anywhere inside the image.

    Area and the logarithm of the ratio are uniform. Ten boxes are tried; an image so long that none of them fits gives
    its centre, as long as 4/3 allows.

    Args:
      height: of the image, in pixels.
      width: likewise.
      draws: where the randomness comes from.
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
    crop: str | None, size: tuple[int, int] | None, key: tuple[int, int] | None, place: tuple[int, ...]
) -> Crop:
    """What a data set's `crop` argument means for one of its images.

    Args:
      crop: None, "center" or "random".
      size: (height, width) of what comes out; None for the image's own.
      key: (seed, epoch), which with the place decide a random crop; None where there is nothing to decide.
      place: the number of the image's row, or those of its shard and row.

    Raises:
      DataError: for a random crop without a key.
    """
    if crop is None or size is None:
        return whole
    if crop == "center":
        return partial(center_crop, size=size)
    if key is None:
        raise DataError(
            "crop='random' was read without the seed and the epoch that decide the crops. Expected it in fit, with "
            "shuffle=True and cache=None; use crop='center' for validation, evaluate and predict, and everywhere else."
        )
    # A stream of its own for every image: threads, batches and the processes of a run may cut the epoch anyhow.
    return partial(random_crop, draws=np.random.default_rng(np.random.SeedSequence(key, spawn_key=place)))


def height_and_width(size: Any) -> tuple[int, int]:
    """A data set's `size` argument as (height, width).

    Raises:
      DataError: if it is neither a positive number of pixels nor two of them.
    """
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(is_int(side, 1) for side in sides):
        raise DataError(f"Expected size to be a number of pixels or (height, width), got {size!r}.")
    return int(sides[0]), int(sides[1])
