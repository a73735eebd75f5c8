"""The range of the values of images: augmentations run inside of the compiled step, which does not know them."""

from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resfit.augment.aug_mix import Consistent
from resfit.augment.one_of import OneOf
from resfit.augment.transform import Augment, ImageTransform
from resfit.errors import DataError

CLIPPING = ("aug_mix", "auto_augment", "color_jitter", "rand_augment", "trivial_augment")
"""The augmentations that clip floats to [0, 1]."""

_BEYOND = 0.25
"""Bicubic interpolation leaves [0, 1] by less."""


def check_range(augments: Iterable[Augment], x: Any) -> None:
    """Raise if augmentations would destroy float images because of the range of their values.

    Nothing is known after a function that is not one of resfit: it may change the range.

    Args:
      augments: in the order of their application.
      x: images of one batch, not yet augmented.

    Raises:
      DataError: for values outside of [0, 1] that an augmentation would clip, and for a `fill` far outside of [0, 1] if
        the images are inside.

    Example:
      >>> from resfit.augment import rand_augment
      >>> check_range([rand_augment()], np.ones((2, 8, 8, 3), "float32"))
    """
    # Others take any range, and reading the values would be in vain.
    picky = [one for one in _parts(takewhile(_is_ours, augments)) if one.name in CLIPPING or _has_large_fill(one)]
    is_float = isinstance(x, np.ndarray | jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)
    if not picky or not is_float or not x.size:
        return
    low, high = float(x.min()), float(x.max())
    got = f"{x.dtype} images with values from {low:.4g} to {high:.4g}"
    for augment in picky:
        if augment.name in CLIPPING and (low < -_BEYOND or high > 1 + _BEYOND):
            raise DataError(
                f"augment.{augment.name} got {got}, and clips floats to [0, 1]. Expected uint8 images, or floats in "
                "[0, 1]: x.astype('uint8') or x / 255. To standardize images, pass compile(preprocess=...), which runs "
                "after the augmentation."
            )
        if low >= -_BEYOND and high <= 1 and _has_large_fill(augment):
            raise DataError(
                f"augment.{augment.name} got fill={dict(augment.arguments)['fill']}, and {got}. Expected a fill value "
                "in the units of the images. Or pass uint8 images, whose values are 0 to 255."
            )


def _parts(augments: Iterable[Augment]) -> Iterator[ImageTransform]:
    for augment in augments:
        if isinstance(augment, OneOf):
            yield from _parts(augment.augments)
        elif isinstance(augment, Consistent):
            yield augment.mix
        elif isinstance(augment, ImageTransform):
            yield augment


def _has_large_fill(augment: ImageTransform) -> bool:
    fill = dict(augment.arguments).get("fill", 0.0)
    return not isinstance(fill, str) and bool(np.max(np.abs(fill)) > 1 + _BEYOND)


def _is_ours(augment: Augment) -> bool:
    return type(augment).__module__.startswith("resfit.augment.")
