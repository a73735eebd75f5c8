"""Random brightness, contrast, saturation and hue."""

import math

import jax
import jax.numpy as jnp

from resfit._utils.checks import is_number
from resfit._utils.keywords import checked
from resfit.augment.transform import ImageTransform, draw, image_transform, like, to_float
from resfit.errors import CompileError, DataError

Planes = list[jax.Array]


@checked("function arguments")
def color_jitter(
    brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4, hue: float = 0.0
) -> ImageTransform:
    """Return an augmentation that changes brightness, contrast, saturation and hue of each image.

    Factors and order are random for each image. The definitions are those of torchvision's `ColorJitter`: brightness
    multiplies the image, contrast blends it with its mean gray, saturation blends it with its gray version, and hue
    rotates the color circle. Each change clips to the valid range. uint8 images are rounded once, at the end.
    Saturation and hue do not apply to gray images.

    Images are uint8, 0 to 255, or floats in [0, 1], with one or three channels (red, green, blue). Other floats
    are clipped, so standardize images in `preprocess`, which runs after augmentation.

    Args:
      brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness]; 0 disables the change.
      contrast: as for brightness.
      saturation: as for brightness.
      hue: the rotation is uniform in [-hue, hue], in full turns, at most 0.5. Hue costs the most time.

    Raises:
      CompileError: for a negative value, a hue above 0.5, or if all values are 0.

    Example:
      >>> x = jnp.full((2, 8, 8, 3), 100, jnp.uint8)
      >>> brighter, _ = color_jitter(brightness=0.5, contrast=0, saturation=0)(jax.random.key(0), x, None)
      >>> bool((brighter >= 50).all() & (brighter <= 150).all())
      True
    """
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    for name, value in strengths.items():
        largest = 0.5 if name == "hue" else math.inf
        if not (is_number(value) and 0 <= value <= largest and math.isfinite(value)):
            most = ", at most 0.5 (half a turn)" if name == "hue" else ""
            raise CompileError(f"augment.color_jitter got {name}={value!r}. Expected a number >= 0{most}.")
    if not any(strengths.values()):
        raise CompileError(
            f"augment.color_jitter got {strengths}, which changes nothing. Expected at least one value above 0."
        )
    return image_transform(_color_jitter, **strengths)


def _color_jitter(key: jax.Array, x: jax.Array, **strengths: float) -> jax.Array:
    n, channels = x.shape[0], x.shape[3]
    if channels not in (1, 3):
        raise DataError(
            f"augment.color_jitter got images of {channels} channels, shape {x.shape}. Expected 1 (gray) or 3 (red, "
            "green, blue)."
        )
    names = [name for name in strengths if strengths[name] and (channels == 3 or name in ("brightness", "contrast"))]
    largest = 255 if x.dtype == jnp.uint8 else 1
    # One array per channel: arithmetic along a last axis of three is several times slower.
    planes = [to_float(x[..., channel]) / largest for channel in range(channels)]
    uniform = draw(key, n, 2 * len(names))
    bounds = jnp.asarray([_bounds(name, strengths[name]) for name in names], jnp.float32).reshape(-1, 2)
    low, high = bounds[None, :, 0], bounds[None, :, 1]
    factors = low + (high - low) * uniform[:, : len(names)]
    # The change at each place of each image's order: (n, places).
    order = jnp.argsort(uniform[:, len(names) :], axis=1)
    for place in range(len(names)):
        here = {name: (order[:, place] == i)[:, None, None] for i, name in enumerate(names)}
        factor = jnp.take_along_axis(factors, order[:, place : place + 1], axis=1)[:, :, None]
        planes = _change(planes, here, factor.astype(planes[0].dtype))
    return like(jnp.stack(planes, axis=3) * largest, x)


def _bounds(name: str, strength: float) -> tuple[float, float]:
    return (-strength, strength) if name == "hue" else (max(0, 1 - strength), 1 + strength)


def _change(planes: Planes, here: dict[str, jax.Array], factor: jax.Array) -> Planes:
    """Apply one change to each image: `here` has a mask (n, 1, 1) for each change, `factor` is (n, 1, 1)."""
    grey = luma(planes)
    other = jnp.zeros_like(grey)  # brightness blends with black
    if "contrast" in here:
        other = jnp.where(here["contrast"], grey.mean(axis=(1, 2), keepdims=True), other)
    if "saturation" in here:
        other = jnp.where(here["saturation"], grey, other)
    blended = [jnp.clip(other + factor * (plane - other), 0, 1) for plane in planes]
    if "hue" not in here:
        return blended
    return [jnp.where(here["hue"], new, old) for new, old in zip(turn_hue(planes, factor), blended, strict=True)]


def luma(planes: Planes) -> jax.Array:
    """Return gray values by ITU-R BT.601, as PIL and torchvision do.

    Args:
      planes: one plane (gray) or three (red, green, blue), (n, height, width) each.
    """
    if len(planes) == 1:
        return planes[0]
    red, green, blue = planes
    return 0.299 * red + 0.587 * green + 0.114 * blue


def turn_hue(planes: Planes, turns: jax.Array) -> Planes:
    """Rotate the hue and keep the saturation and value of HSV.

    Args:
      planes: red, green and blue in [0, 1], (n, height, width) each.
      turns: the rotation in full turns, (n, 1, 1).
    """
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma > 0, chroma, 1)
    hue = jnp.where(  # in sixths of a turn, from -1 to 5
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )

    def channel(offset: int) -> jax.Array:
        # Smith (1978) without branches: the value, less the chroma where this channel is far from the hue.
        away = hue + 6 * turns + offset
        away = away - 6 * jnp.floor(away / 6)
        return value - chroma * jnp.clip(jnp.minimum(away, 4 - away), 0, 1)

    return [channel(5), channel(3), channel(1)]
