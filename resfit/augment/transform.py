"""What an augmentation is, and the form that those of images alone share."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from resfit.errors import CompileError, DataError, RankError

Augment = Callable[[jax.Array, Any, Any], tuple[Any, Any]]
"""(key, x, y) -> (x, y), of one batch: what `compile(augment=...)` takes."""


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """Changes the images and leaves the labels alone, whatever they are. Equal ones compare equal.

    Args:
      transform: (key, x, **arguments) -> x, with x (batch, height, width, channels) uint8 or float, kept.
      arguments: of it, by name.

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

    def __call__(self, key: jax.Array, x: Any, y: Any) -> tuple[jax.Array, Any]:
        """The transformed images, and the labels as they came.

        Raises:
          RankError: if x is no batch of images.
          DataError: if they are neither uint8 nor floats.
        """
        return self.transform(key, as_images(self._name, x), **dict(self.arguments)), y

    def __repr__(self) -> str:
        return f"{self._name}({', '.join(f'{name}={value!r}' for name, value in self.arguments)})"

    @property
    def _name(self) -> str:
        return self.transform.__name__.removeprefix("_")


def image_transform(transform: Callable[..., jax.Array], **arguments: Any) -> ImageTransform:
    """An `ImageTransform` of a function and its arguments."""
    return ImageTransform(transform, tuple(arguments.items()))


def as_images(name: str, x: Any) -> jax.Array:
    """Checks that x is a batch of images, while the step is traced.

    Args:
      name: of the augmentation, for the message.
      x: (batch, height, width, channels), uint8 or float.
    """
    if not hasattr(x, "ndim") or x.ndim != 4:
        got = f"shape {x.shape}" if hasattr(x, "shape") else f"a {type(x).__name__}"
        raise RankError(
            f"augment.{name} got inputs of {got}. Expected one array of images, (batch, height, width, channels). Grey "
            "images need their channel: x[..., None]. For several inputs give compile(augment=...) a function of your "
            "own, (key, x, y) -> (x, y)."
        )
    if x.dtype != jnp.uint8 and not jnp.issubdtype(x.dtype, jnp.floating):
        raise DataError(
            f"augment.{name} got images of dtype {x.dtype}, shape {x.shape}. Expected uint8, 0 to 255, or floats: "
            "x.astype('uint8')."
        )
    return jnp.asarray(x)


def draw(key: jax.Array, *shape: int) -> jax.Array:
    """Uniform float32 in [0, 1). An augmentation draws all its numbers at once: every call takes time to compile."""
    return jax.random.uniform(key, shape, jnp.float32)


def whole(uniform: jax.Array, below: int | jax.Array) -> jax.Array:
    """Whole numbers from 0 up to, not including, `below`, of numbers uniform in [0, 1)."""
    return jnp.floor(uniform * below).astype(jnp.int32)


def to_float(x: jax.Array) -> jax.Array:
    """The same values, as float32 or wider, for arithmetic."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def like(values: jax.Array, x: jax.Array) -> jax.Array:
    """Values as the dtype of x; to uint8 they are rounded and clipped, as a cast would cut off and wrap around."""
    if x.dtype == jnp.uint8:
        values = jnp.clip(jnp.round(values), 0, 255)
    return values.astype(x.dtype)


def require_share(name: str, argument: str, value: float) -> None:
    """Checks that an argument is a share."""
    if not 0 <= value <= 1:
        raise CompileError(f"augment.{name} got {argument}={value!r}. Expected a number from 0 to 1.")


def require_range(name: str, argument: str, value: tuple[float, float], largest: float) -> None:
    """Checks that an argument is an interval of positive numbers, (low, high)."""
    pair = isinstance(value, tuple | list) and len(value) == 2
    if not pair or not 0 < value[0] <= value[1] <= largest or not math.isfinite(value[1]):
        most = "" if math.isinf(largest) else f" of at most {largest:g}"
        raise CompileError(f"augment.{name} got {argument}={value!r}. Expected (low, high), 0 < low <= high{most}.")
