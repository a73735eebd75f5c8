"""The type of augmentations, and the form of those that change only images."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from resfit._utils.checks import is_number
from resfit._utils.jax_switches import implicit_promotion
from resfit.augment.masks import moved, public
from resfit.errors import CompileError, DataError, RankError

Augment = Callable[[jax.Array, Any, Any], tuple[Any, Any]]
"""A function (key, x, y) -> (x, y) of one batch, for `compile(augment=...)`."""


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """An augmentation that changes images, moves masks like them, and keeps other labels. Equal objects compare equal.

    Args:
      transform: a function (key, x, **arguments) -> x of images (batch, height, width, channels), uint8 or float. It
        keeps the dtype.
      arguments: names and values of the arguments of `transform`.
      masks: a function (key, masks, **arguments) -> masks that moves masks (batch, height, width, channels), of any
        dtype, like `transform` moves the images; None if every pixel keeps its place.

    Example:
      >>> from resfit import augment
      >>> augment.flip(probability=0.5)
      flip(probability=0.5)
      >>> x, y = augment.flip()(jax.random.key(0), jnp.zeros((2, 8, 8, 3), jnp.uint8), None)
      >>> x.shape, x.dtype, y
      ((2, 8, 8, 3), dtype('uint8'), None)
    """

    transform: Callable[..., jax.Array]
    arguments: tuple[tuple[str, Any], ...]
    masks: Callable[..., jax.Array] | None = None

    @implicit_promotion()
    def __call__(self, key: jax.Array, x: Any, y: Any) -> tuple[jax.Array, Any]:
        """Return the changed images, and the labels: masks with the pixels moved alike, others unchanged.

        Raises:
          RankError: if x is not a batch of images.
          DataError: if the images are neither uint8 nor floats.
          LabelError: for masks of another size than the images.
        """
        x, arguments = as_images(self.name, x), dict(self.arguments)
        changed, move = self.transform(key, x, **arguments), self.masks
        return changed, y if move is None else moved(self.name, y, x, lambda masks: move(key, masks, **arguments))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments)})"

    @property
    def name(self) -> str:
        """The name of the function that made this augmentation."""
        return self.transform.__name__.removeprefix("_")


def image_transform(
    transform: Callable[..., jax.Array], masks: Callable[..., jax.Array] | None = None, /, **arguments: Any
) -> ImageTransform:
    """Return an `ImageTransform` of a function of images, one of masks, and their arguments."""
    return ImageTransform(transform, tuple(arguments.items()), masks)


def as_images(name: str, x: Any) -> jax.Array:
    """Return x as an array, or raise if it is not a batch of images. The check runs while the step is traced.

    Args:
      name: the name of the augmentation, or a call such as "fit(image_sizes=...)", for the message.
      x: images (batch, height, width, channels), uint8 or float.
    """
    if not hasattr(x, "ndim") or x.ndim != 4:
        got = f"shape {x.shape}" if hasattr(x, "shape") else f"a {type(x).__name__}"
        raise RankError(
            f"{public(name)} got inputs of {got}. Expected one array of images, (batch, height, width, channels). For "
            "gray images add the channel: x[..., None]. For several inputs pass a custom function (key, x, y) -> (x, "
            "y) to compile(augment=...)."
        )
    if x.dtype != jnp.uint8 and not jnp.issubdtype(x.dtype, jnp.floating):
        raise DataError(
            f"{public(name)} got images of dtype {x.dtype}, shape {x.shape}. Expected uint8, 0 to 255, or floats: "
            "x.astype('uint8')."
        )
    return jnp.asarray(x)


def draw(key: jax.Array, *shape: int) -> jax.Array:
    """Return uniform float32 numbers in [0, 1). Draw all numbers in one call: every call takes time to compile."""
    return jax.random.uniform(key, shape, jnp.float32)


def whole(uniform: jax.Array, below: int | jax.Array) -> jax.Array:
    """Return integers from 0 up to, not including, `below`, made of uniform numbers in [0, 1)."""
    return jnp.floor(uniform * below).astype(jnp.int32)


def to_float(x: jax.Array) -> jax.Array:
    """Return the values as float32 or a wider dtype, for arithmetic."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def like(values: jax.Array, x: jax.Array) -> jax.Array:
    """Return values in the dtype of x. For uint8, round and clip: a cast would truncate and wrap around."""
    if x.dtype == jnp.uint8:
        values = jnp.clip(jnp.round(values), 0, 255)
    return values.astype(x.dtype)


def check_fill(name: str, x: jax.Array, *fill: float, clips: bool = False) -> None:
    """Raise DataError if images cannot hold a fill value; `clips` says that floats are clipped to [0, 1]."""
    largest = 255 if x.dtype == jnp.uint8 else 1 if clips else math.inf
    if not all(0 <= value <= largest for value in fill) and math.isfinite(largest):
        got = fill if len(fill) > 1 else fill[0]
        raise DataError(
            f"augment.{name} got fill={got} for {x.dtype} images. Expected values from 0 to {largest}, in the units of "
            "the images."
        )


def require_share(name: str, argument: str, value: float) -> None:
    """Raise if an argument is not a number from 0 to 1."""
    if not (is_number(value) and 0 <= value <= 1):
        raise CompileError(f"augment.{name} got {argument}={value!r}. Expected a number from 0 to 1.")


def require_range(name: str, argument: str, value: tuple[float, float], largest: float) -> None:
    """Raise if an argument is not an interval (low, high) of positive numbers."""
    pair = isinstance(value, tuple | list) and len(value) == 2 and all(is_number(one) for one in value)
    if not pair or not 0 < value[0] <= value[1] <= largest or not math.isfinite(value[1]):
        most = "" if math.isinf(largest) else f" of at most {largest:g}"
        raise CompileError(f"augment.{name} got {argument}={value!r}. Expected (low, high), 0 < low <= high{most}.")
