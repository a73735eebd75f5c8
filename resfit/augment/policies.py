"""RandAugment, TrivialAugment and AutoAugment."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resfit._utils.checks import is_int
from resfit._utils.keywords import checked
from resfit.augment.affine import checked_fill
from resfit.augment.masks import fill_argument
from resfit.augment.operations import OPERATIONS, apply, places
from resfit.augment.transform import ImageTransform, check_fill, draw, image_transform, whole
from resfit.augment.warp import check_interpolation, sample_masks
from resfit.errors import CompileError, DataError

_MOST = 30
"""The largest magnitude of `rand_augment`; TrivialAugment draws one of 0 to 30."""

_SIGNED = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness")
_DRAWN = OPERATIONS[:-1]  # of RandAugment and TrivialAugment; AutoAugment also inverts


class Space(NamedTuple):
    """The largest magnitudes of a method, as in torchvision.

    Attributes:
      shear: the slope.
      share: shifts as a share of the width or height; 0 to use `pixels`.
      pixels: shifts in pixels.
      degrees: of rotations.
      factor: the change of the factor of blends.
      bits: the bits that posterizing drops.
      kept: the bits that the smallest magnitude of posterizing keeps.
    """

    shear: float
    share: float
    pixels: float
    degrees: float
    factor: float
    bits: int
    kept: int = 8


NARROW = Space(0.3, 150 / 331, 0, 30, 0.9, 4)  # of RandAugment and AutoAugment
WIDE = Space(0.99, 0, 32, 135, 0.99, 6)  # of TrivialAugment

# Pairs of (operation, probability, magnitude from 0 to 9), from the appendix of arXiv 1805.09501, as torchvision has
# them. Operations without a magnitude have 0.
_Pair = tuple[tuple[str, float, int], tuple[str, float, int]]
POLICIES: dict[str, tuple[_Pair, ...]] = {
    "cifar10": (
        (("invert", 0.1, 0), ("contrast", 0.2, 6)),
        (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
        (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
        (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
        (("autocontrast", 0.5, 0), ("equalize", 0.9, 0)),
        (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
        (("color", 0.4, 3), ("brightness", 0.6, 7)),
        (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
        (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
        (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
        (("color", 0.7, 7), ("translate_x", 0.5, 8)),
        (("equalize", 0.3, 0), ("autocontrast", 0.4, 0)),
        (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
        (("brightness", 0.9, 6), ("color", 0.2, 8)),
        (("solarize", 0.5, 2), ("invert", 0.0, 0)),
        (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
        (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
        (("color", 0.9, 9), ("equalize", 0.6, 0)),
        (("autocontrast", 0.8, 0), ("solarize", 0.2, 8)),
        (("brightness", 0.1, 3), ("color", 0.7, 0)),
        (("solarize", 0.4, 5), ("autocontrast", 0.9, 0)),
        (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
        (("autocontrast", 0.9, 0), ("solarize", 0.8, 3)),
        (("equalize", 0.8, 0), ("invert", 0.1, 0)),
        (("translate_y", 0.7, 9), ("autocontrast", 0.9, 0)),
    ),
    "imagenet": (
        (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
        (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
        (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
        (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
        (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
        (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
        (("solarize", 0.6, 3), ("equalize", 0.6, 0)),
        (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
        (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
        (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
        (("rotate", 0.8, 8), ("color", 0.4, 0)),
        (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
        (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
        (("invert", 0.6, 0), ("equalize", 1.0, 0)),
        (("color", 0.6, 4), ("contrast", 1.0, 8)),
        (("rotate", 0.8, 8), ("color", 1.0, 2)),
        (("color", 0.8, 8), ("solarize", 0.8, 7)),
        (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
        (("shear_x", 0.6, 5), ("equalize", 1.0, 0)),
        (("color", 0.4, 0), ("equalize", 0.6, 0)),
        (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
        (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
        (("invert", 0.6, 0), ("equalize", 1.0, 0)),
        (("color", 0.6, 4), ("contrast", 1.0, 8)),
        (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    ),
}


@checked("function arguments")
def rand_augment(
    n: int = 2, m: int = 9, interpolation: str = "nearest", fill: float = 0.0, mask_fill: int | None = None
) -> ImageTransform:
    """Return an augmentation that applies n random operations to each image, all of the magnitude m.

    The fourteen operations and their magnitudes are those of torchvision's `RandAugment`: shears, shifts, rotation,
    brightness, color, contrast, sharpness, posterize, solarize, autocontrast, equalize, and none. Source: Cubuk et al.
    (arXiv 1909.13719). Images are uint8, 0 to 255, or floats in [0, 1], with one or three channels; floats are computed
    in 256 levels.

    Args:
      n: the number of operations.
      m: the magnitude, 0 to 30. The source has 9 for ResNet-50 on ImageNet.
      interpolation: of the operations that move pixels, "nearest" or "bilinear".
      fill: the value of pixels from outside of the image, in the units of the images.
      mask_fill: the label of such pixels in masks, as for `rotate`.

    Raises:
      CompileError: for any other value.

    Example:
      >>> x = jnp.full((2, 8, 8, 3), 100, jnp.uint8)
      >>> rand_augment(n=2, m=9)(jax.random.key(0), x, None)[0].shape
      (2, 8, 8, 3)
    """
    if not is_int(n, 1):
        raise CompileError(f"augment.rand_augment got n={n!r}. Expected a positive number of operations.")
    if not is_int(m, 0) or m > _MOST:
        raise CompileError(f"augment.rand_augment got m={m!r}. Expected a magnitude, an integer from 0 to {_MOST}.")
    common = common_arguments("rand_augment", interpolation, fill, mask_fill)
    return image_transform(_rand_augment, _rand_augment_masks, n=int(n), m=int(m), **common)


@checked("function arguments")
def trivial_augment(interpolation: str = "nearest", fill: float = 0.0, mask_fill: int | None = None) -> ImageTransform:
    """Return an augmentation that applies one random operation of a random magnitude to each image.

    The same as torchvision's `TrivialAugmentWide`, with the operations of `rand_augment`. Source: Müller and Hutter
    (arXiv 2103.10158). Images as for `rand_augment`.

    Args:
      interpolation: as for `rand_augment`.
      fill: as for `rand_augment`.
      mask_fill: as for `rand_augment`.

    Raises:
      CompileError: for any other value.

    Example:
      >>> x = jnp.full((2, 8, 8, 3), 100, jnp.uint8)
      >>> trivial_augment()(jax.random.key(0), x, None)[0].dtype
      dtype('uint8')
    """
    common = common_arguments("trivial_augment", interpolation, fill, mask_fill)
    return image_transform(_trivial_augment, _trivial_augment_masks, **common)


@checked("function arguments")
def auto_augment(
    policy: str = "imagenet", interpolation: str = "nearest", fill: float = 0.0, mask_fill: int | None = None
) -> ImageTransform:
    """Return an augmentation that applies one of 25 learned pairs of operations to each image.

    The same as torchvision's `AutoAugment`. Source: Cubuk et al. (arXiv 1805.09501). Images as for `rand_augment`.

    Args:
      policy: "imagenet" or "cifar10", the data on which the pairs were learned.
      interpolation: as for `rand_augment`.
      fill: as for `rand_augment`.
      mask_fill: as for `rand_augment`.

    Raises:
      CompileError: for any other value.

    Example:
      >>> auto_augment("cifar10")
      auto_augment(policy='cifar10', interpolation='nearest', fill=0.0)
    """
    if policy not in POLICIES:
        raise CompileError(f"augment.auto_augment got policy={policy!r}. Expected one of {list(POLICIES)}.")
    common = common_arguments("auto_augment", interpolation, fill, mask_fill)
    return image_transform(_auto_augment, _auto_augment_masks, policy=policy, **common)


def common_arguments(name: str, interpolation: str, fill: float, mask_fill: int | None) -> dict[str, Any]:
    """Return the arguments that augmentations of operations share, or raise CompileError."""
    check_interpolation(name, interpolation)
    return {"interpolation": interpolation, "fill": checked_fill(name, fill), **fill_argument(name, mask_fill)}


# --- what is drawn ----------------------------------------------------------------------------------------------------


class Steps(NamedTuple):
    """The operations of a batch, (steps, rows) each: numbers of `OPERATIONS`, and magnitudes as of `apply`."""

    operation: jax.Array
    magnitude: jax.Array


def magnitudes(space: Space, bins: int, height: int, width: int) -> np.ndarray:
    """Return the positive magnitude of every operation in every bin, (operations, bins) float32."""
    share = np.linspace(0, 1, bins)
    largest = dict.fromkeys(_SIGNED[5:], space.factor) | {"shear_x": space.shear, "shear_y": space.shear}
    largest |= {"translate_x": space.share * width + space.pixels, "translate_y": space.share * height + space.pixels}
    largest |= {"rotate": space.degrees}
    found = {name: value * share for name, value in largest.items()}
    found |= {"posterize": np.round(space.kept - space.bits * share), "solarize": 255 * (1 - share)}
    return np.stack([found.get(name, 0 * share) for name in OPERATIONS]).astype(np.float32)


def signed(operation: jax.Array, magnitude: jax.Array, uniform: jax.Array) -> jax.Array:
    """Return magnitudes with a random sign, by uniform numbers in [0, 1), for the operations that have one."""
    has_sign = jnp.asarray([name in _SIGNED for name in OPERATIONS])[operation]
    return jnp.where(has_sign & (uniform <= 0.5), -magnitude, magnitude)


def _of_rand(key: jax.Array, shape: tuple[int, ...], n: int, m: int) -> Steps:
    uniform = draw(key, 2, n, shape[0])
    operation = whole(uniform[0], len(_DRAWN))
    magnitude = jnp.asarray(magnitudes(NARROW, _MOST + 1, shape[1], shape[2])[:, m])[operation]
    return Steps(operation, signed(operation, magnitude, uniform[1]))


def _of_trivial(key: jax.Array, shape: tuple[int, ...]) -> Steps:
    uniform = draw(key, 3, 1, shape[0])
    operation, number = whole(uniform[0], len(_DRAWN)), whole(uniform[1], _MOST + 1)
    magnitude = jnp.asarray(magnitudes(WIDE, _MOST + 1, shape[1], shape[2]))[operation, number]
    return Steps(operation, signed(operation, magnitude, uniform[2]))


def _of_auto(key: jax.Array, shape: tuple[int, ...], policy: str) -> Steps:
    table = magnitudes(NARROW, 10, shape[1], shape[2])
    pairs = POLICIES[policy]
    numbers = np.asarray([[OPERATIONS.index(name) for name, _, _ in pair] for pair in pairs])
    values = np.asarray([[table[OPERATIONS.index(name), number] for name, _, number in pair] for pair in pairs])
    probabilities = np.asarray([[probability for _, probability, _ in pair] for pair in pairs], np.float32)
    uniform = draw(key, 5, shape[0])
    chosen = whole(uniform[0], len(pairs))
    operation, magnitude, probability = (jnp.asarray(one)[chosen].T for one in (numbers, values, probabilities))
    operation = jnp.where(uniform[1:3] < probability, operation, 0)
    return Steps(operation.astype(jnp.int32), signed(operation, magnitude, uniform[3:]))


# --- images and masks -------------------------------------------------------------------------------------------------


def _changed(name: str, x: jax.Array, steps: Steps, interpolation: str, fill: float) -> jax.Array:
    levels, outside = as_levels(name, x, fill)
    levels = after_steps(levels, steps, interpolation, outside)
    return levels if levels.dtype == x.dtype else (levels.astype(jnp.float32) / 255).astype(x.dtype)


def as_levels(name: str, x: jax.Array, fill: float) -> tuple[jax.Array, float]:
    """Return images and a fill value in 256 levels.

    Raises:
      DataError: for another number of channels than 1 and 3, and a fill value outside of the range of the images.
    """
    check_fill(name, x, fill, clips=True)
    if x.shape[3] not in (1, 3):
        raise DataError(
            f"augment.{name} got images of {x.shape[3]} channels, shape {x.shape}. Expected 1 (gray) or 3 (red, green, "
            "blue)."
        )
    if x.dtype == jnp.uint8:
        return x, fill
    return jnp.clip(jnp.round(x.astype(jnp.float32) * 255), 0, 255).astype(jnp.uint8), fill * 255


def after_steps(levels: jax.Array, steps: Steps, interpolation: str, fill: float) -> jax.Array:
    """Return uint8 images after their operations, one after the other."""

    def step(levels: jax.Array, one: Steps) -> tuple[jax.Array, None]:
        return apply(levels, one.operation, one.magnitude, interpolation, fill), None

    levels, _ = jax.lax.scan(step, levels, steps)  # compiles one step only
    return levels


def _moved(name: str, masks: jax.Array, steps: Steps, mask_fill: int | None) -> jax.Array:
    for operation, magnitude in zip(*steps, strict=True):
        masks = sample_masks(name, masks, places(operation, magnitude, masks.shape[1], masks.shape[2]), mask_fill)
    return masks


def _rand_augment(key: jax.Array, x: jax.Array, n: int, m: int, interpolation: str, fill: float, **_: Any) -> jax.Array:
    return _changed("rand_augment", x, _of_rand(key, x.shape, n, m), interpolation, fill)


def _rand_augment_masks(
    key: jax.Array, masks: jax.Array, n: int, m: int, mask_fill: int | None = None, **_: Any
) -> jax.Array:
    return _moved("rand_augment", masks, _of_rand(key, masks.shape, n, m), mask_fill)


def _trivial_augment(key: jax.Array, x: jax.Array, interpolation: str, fill: float, **_: Any) -> jax.Array:
    return _changed("trivial_augment", x, _of_trivial(key, x.shape), interpolation, fill)


def _trivial_augment_masks(key: jax.Array, masks: jax.Array, mask_fill: int | None = None, **_: Any) -> jax.Array:
    return _moved("trivial_augment", masks, _of_trivial(key, masks.shape), mask_fill)


def _auto_augment(key: jax.Array, x: jax.Array, policy: str, interpolation: str, fill: float, **_: Any) -> jax.Array:
    return _changed("auto_augment", x, _of_auto(key, x.shape, policy), interpolation, fill)


def _auto_augment_masks(
    key: jax.Array, masks: jax.Array, policy: str, mask_fill: int | None = None, **_: Any
) -> jax.Array:
    return _moved("auto_augment", masks, _of_auto(key, masks.shape, policy), mask_fill)
