"""Random rotations and affine maps."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from resfit._utils.checks import is_number
from resfit._utils.keywords import checked
from resfit.augment.masks import fill_argument
from resfit.augment.transform import ImageTransform, check_fill, draw, image_transform, require_range
from resfit.augment.warp import check_interpolation, matrices, sample, sample_masks
from resfit.errors import CompileError

Interval = tuple[float, float]


@checked("function arguments")
def rotate(
    degrees: float | Interval, interpolation: str = "bilinear", fill: float = 0.0, mask_fill: int | None = None
) -> ImageTransform:
    """Return an augmentation that rotates each image around its center by a random angle.

    The same as torchvision's `RandomRotation`, whose interpolation is "nearest" by default; its angles are
    counterclockwise. Keras's `RandomRotation(factor)` is `rotate(360 * factor)` with the fill mode "constant".

    Args:
      degrees: the angle is uniform in [-degrees, degrees], or in an interval (low, high).
      interpolation: "bilinear" or "nearest".
      fill: the value of pixels from outside of the image, in the units of the images. Bilinear interpolation blends
        with it at the border, as torchvision does without `fill`; with one, it weights the border twice.
      mask_fill: the label of such pixels in masks: 255 with `CrossEntropy(ignore_index=255)`, or the class of the
        background. Masks need it, other labels do not.

    Raises:
      CompileError: for any other value.

    Example:
      >>> x = jnp.array([[[[1.0], [2.0]], [[3.0], [4.0]]]])
      >>> rotate((90, 90))(jax.random.key(0), x, None)[0][0, :, :, 0].round(4)
      Array([[2., 4.],
             [1., 3.]], dtype=float32)
    """
    interval = _interval("rotate", "degrees", degrees)
    arguments = {"degrees": interval, "interpolation": interpolation, "fill": checked_fill("rotate", fill)}
    check_interpolation("rotate", interpolation)
    return image_transform(_rotate, _rotate_masks, **arguments, **fill_argument("rotate", mask_fill))


@checked("function arguments")
def affine(
    degrees: float | Interval = 0.0,
    translate: Interval = (0.0, 0.0),
    scale: Interval = (1.0, 1.0),
    shear: float | Interval = 0.0,
    interpolation: str = "bilinear",
    fill: float = 0.0,
    mask_fill: int | None = None,
) -> ImageTransform:
    """Return an augmentation that rotates, shifts, scales and shears each image at random.

    The same as torchvision's `RandomAffine`, whose interpolation is "nearest" by default.

    Args:
      degrees: the clockwise angle is uniform in [-degrees, degrees], or in an interval (low, high).
      translate: the largest shifts to the sides and up and down, as shares of width and height. Shifts are whole
        pixels.
      scale: the scale is uniform in this interval.
      shear: the largest horizontal angle in degrees, or the largest (horizontal, vertical) ones. In torchvision, two
        numbers are the interval of the horizontal angle, and (-a, a, -b, b) is `shear=(a, b)`.
      interpolation: as for `rotate`.
      fill: as for `rotate`.
      mask_fill: as for `rotate`.

    Raises:
      CompileError: for any other value, or if nothing would change.

    Example:
      >>> x = jnp.ones((2, 8, 8, 3), jnp.uint8)
      >>> affine(10, translate=(0.1, 0.1), scale=(0.9, 1.1))(jax.random.key(0), x, None)[0].shape
      (2, 8, 8, 3)
    """
    interval, sheared = (
        _interval("affine", "degrees", degrees),
        shear if isinstance(shear, tuple | list) else (shear, 0),
    )
    require_range("affine", "scale", scale, math.inf)
    for name, pair, largest in (("translate", translate, 1.0), ("shear", sheared, 89.0)):
        if not (_is_pair(pair) and all(0 <= one <= largest for one in pair)):
            raise CompileError(f"augment.affine got {name}={pair!r}. Expected numbers (x, y) from 0 to {largest:g}.")
    arguments: dict[str, Any] = {
        "degrees": interval, "translate": tuple(map(float, translate)), "scale": tuple(map(float, scale)),
        "shear": tuple(map(float, sheared)), "interpolation": interpolation, "fill": checked_fill("affine", fill),
    }  # fmt: skip
    check_interpolation("affine", interpolation)
    changes: list[float] = [*interval, *translate, *sheared, scale[0] - 1, scale[1] - 1]
    if not any(changes):
        raise CompileError(
            "augment.affine got arguments that change nothing. Expected degrees, translate, scale or shear."
        )
    return image_transform(_affine, _affine_masks, **arguments, **fill_argument("affine", mask_fill))


def _is_pair(value: Any) -> bool:
    numbers = isinstance(value, tuple | list) and all(is_number(one) for one in value)
    return numbers and len(value) == 2 and all(map(math.isfinite, value))


def _interval(name: str, argument: str, value: Any) -> Interval:
    pair: Any = (-value, value) if is_number(value) else value
    if not _is_pair(pair) or pair[0] > pair[1]:
        raise CompileError(
            f"augment.{name} got {argument}={value!r}. Expected a number >= 0, or an interval (low, high)."
        )
    return float(pair[0]), float(pair[1])


def checked_fill(name: str, fill: Any) -> float:
    """Return the value of pixels from outside of an image as a float, or raise CompileError."""
    if not is_number(fill) or not math.isfinite(fill):
        raise CompileError(f"augment.{name} got fill={fill!r}. Expected a number in the units of the images.")
    return float(fill)


def _between(uniform: jax.Array, interval: Interval) -> jax.Array:
    return interval[0] + (interval[1] - interval[0]) * uniform


def _turned(key: jax.Array, rows: int, degrees: Interval) -> jax.Array:
    angle = -_between(draw(key, rows), degrees)
    zero = jnp.zeros_like(angle)
    return matrices(angle, (zero, zero), jnp.ones_like(angle), (zero, zero))


def _rotate(key: jax.Array, x: jax.Array, degrees: Interval, interpolation: str, fill: float, **_: Any) -> jax.Array:
    check_fill("rotate", x, fill)
    return sample(x, _turned(key, len(x), degrees), interpolation, fill)


def _rotate_masks(
    key: jax.Array, masks: jax.Array, degrees: Interval, mask_fill: int | None = None, **_: Any
) -> jax.Array:
    return sample_masks("rotate", masks, _turned(key, len(masks), degrees), mask_fill)


def _mapped(
    key: jax.Array, shape: tuple[int, ...], degrees: Interval, translate: Interval, scale: Interval, shear: Interval
) -> jax.Array:
    uniform = draw(key, 6, shape[0])
    most = translate[0] * shape[2], translate[1] * shape[1]
    shifts = [jnp.round(_between(one, (-far, far))) for one, far in zip(uniform[1:3], most, strict=True)]
    sheared = [_between(one, (-far, far)) for one, far in zip(uniform[4:], shear, strict=True)]
    return matrices(
        _between(uniform[0], degrees), (shifts[0], shifts[1]), _between(uniform[3], scale), (sheared[0], sheared[1])
    )


def _affine(
    key: jax.Array,
    x: jax.Array,
    degrees: Interval,
    translate: Interval,
    scale: Interval,
    shear: Interval,
    interpolation: str,
    fill: float,
    **_: Any,
) -> jax.Array:
    check_fill("affine", x, fill)
    return sample(x, _mapped(key, x.shape, degrees, translate, scale, shear), interpolation, fill)


def _affine_masks(
    key: jax.Array,
    masks: jax.Array,
    degrees: Interval,
    translate: Interval,
    scale: Interval,
    shear: Interval,
    mask_fill: int | None = None,
    **_: Any,
) -> jax.Array:
    return sample_masks("affine", masks, _mapped(key, masks.shape, degrees, translate, scale, shear), mask_fill)
