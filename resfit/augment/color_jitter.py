"""Random brightness, contrast, saturation and hue."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from resfit.augment.transform import ImageTransform, image_transform, like, to_float
from resfit.errors import CompileError, DataError


def color_jitter(
    brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4, hue: float = 0.0
) -> ImageTransform:
    """Changes brightness, contrast, saturation and hue of each image by factors of its own, in an order of its own.

    The definitions are torchvision's `ColorJitter`: brightness multiplies, contrast moves away from or towards the
    mean grey of the image, saturation away from or towards its own grey, hue turns the color circle; what leaves the
    range is cut off after each. uint8 images are rounded once, at the end. Grey images keep saturation and hue.

    Args:
      brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness]; 0 leaves it out.
      contrast: likewise.
      saturation: likewise.
      hue: the turn is uniform in [-hue, hue], in full turns, at most 0.5. It is the costly one.

    Images must be uint8, 0 to 255, or floats in [0, 1], of one or three channels (red, green, blue). Floats outside of
    [0, 1] are cut off: standardise in `preprocess`, which comes after.

    Raises:
      CompileError: for negative values, a hue above 0.5, or nothing to change.

    Example:
      >>> x = jnp.full((2, 8, 8, 3), 100, jnp.uint8)
      >>> brighter, _ = color_jitter(brightness=0.5, contrast=0, saturation=0)(jax.random.key(0), x, None)
      >>> bool((brighter >= 50).all() & (brighter <= 150).all())
      True
    """
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    for name, value in strengths.items():
        largest = 0.5 if name == "hue" else math.inf
        if not (0 <= value <= largest and math.isfinite(value)):
            most = ", at most 0.5 (half a turn)" if name == "hue" else ""
            raise CompileError(f"augment.color_jitter got {name}={value!r}. Expected a number >= 0{most}.")
    if not any(strengths.values()):
        raise CompileError(f"augment.color_jitter got {strengths}, which changes nothing. Expected one above zero.")
    return image_transform(_color_jitter, **strengths)


def _color_jitter(key: jax.Array, x: jax.Array, **strengths: float) -> jax.Array:
    n, channels = x.shape[0], x.shape[3]
    if channels not in (1, 3):
        raise DataError(
            f"augment.color_jitter got images of {channels} channels, shape {x.shape}. Expected 1 (grey) or 3 (red, "
            "green, blue)."
        )
    image = to_float(x) / 255 if x.dtype == jnp.uint8 else to_float(x)
    names = [name for name, strength in strengths.items() if strength and (channels == 3 or name in _OF_GREY)]
    if not names:
        return x
    factor_key, order_key = jax.random.split(key)
    bounds = jnp.asarray([_bounds(name, strengths[name]) for name in names], jnp.float32)
    low, high = bounds[None, :, 0], bounds[None, :, 1]
    factors = low + (high - low) * jax.random.uniform(factor_key, (n, len(names)))
    # Which change stands at which place: (n, places). Each place computes all of them and keeps one.
    order = jnp.argsort(jax.random.uniform(order_key, (n, len(names))), axis=1)
    for place in range(len(names)):
        changed = image
        for i, name in enumerate(names):
            factor = factors[:, i, None, None, None].astype(image.dtype)
            here = (order[:, place] == i)[:, None, None, None]
            changed = jnp.where(here, _CHANGES[name](image, factor), changed)
        image = changed
    return like(image * 255 if x.dtype == jnp.uint8 else image, x)


def _bounds(name: str, strength: float) -> tuple[float, float]:
    return (-strength, strength) if name == "hue" else (max(0, 1 - strength), 1 + strength)


# Each change takes images in [0, 1], (n, height, width, channels), and a factor of each, (n, 1, 1, 1).


def change_brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with black."""
    return _blend(image, jnp.zeros_like(image), factor)


def change_contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the image's mean grey."""
    return _blend(image, _grey(image).mean(axis=(1, 2, 3), keepdims=True), factor)


def change_saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the image in grey."""
    return _blend(image, _grey(image), factor)


def change_hue(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Turns the hue, by a factor in full turns, at the same HSV saturation and value."""
    value = image.max(axis=3, keepdims=True)
    chroma = value - image.min(axis=3, keepdims=True)
    red, green, blue = jnp.split(image, 3, axis=3)
    divisor = jnp.where(chroma > 0, chroma, 1)
    sixths = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    # Back: each channel is the value, less the chroma where the hue is far from it. Smith (1978), without branches.
    away = (sixths + 6 * factor + jnp.asarray([5, 3, 1], image.dtype).reshape(1, 1, 1, 3)) % 6
    return value - chroma * jnp.clip(jnp.minimum(away, 4 - away), 0, 1)


def _blend(image: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.clip(other + factor * (image - other), 0, 1)


def _grey(image: jax.Array) -> jax.Array:
    """The luma of ITU-R BT.601, as PIL and torchvision; (n, height, width, 1)."""
    if image.shape[3] == 1:
        return image
    return (image * jnp.asarray([0.299, 0.587, 0.114], image.dtype).reshape(1, 1, 1, 3)).sum(axis=3, keepdims=True)


_OF_GREY = ("brightness", "contrast")
_CHANGES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "brightness": change_brightness,
    "contrast": change_contrast,
    "saturation": change_saturation,
    "hue": change_hue,
}
