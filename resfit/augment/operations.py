"""The operations of AutoAugment and its successors, one for each image, for a whole batch at once.

Each operation belongs to a family: a map of places, a blend with another image, or a table of 256 levels. A batch
passes one map, one blend and one table, which change nothing for the images whose operation is in another family. So no
batch computes all fifteen operations.
"""

import jax
import jax.numpy as jnp

from resfit.augment.warp import matrices, sample

OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize", "invert",
)  # fmt: skip
_BY_NAME = {name: number for number, name in enumerate(OPERATIONS)}


def apply(x: jax.Array, operation: jax.Array, magnitude: jax.Array, interpolation: str, fill: float) -> jax.Array:
    """Return each image after its operation, as torchvision's operations make it of uint8 images.

    Args:
      x: images (rows, height, width, 1 or 3) uint8.
      operation: (rows,) numbers of `OPERATIONS`.
      magnitude: (rows,) float32: the slope of shears, pixels of shifts, degrees of rotations, the change of the factor
        of blends, the bits that posterizing keeps, the threshold of solarizing.
      interpolation: as of `warp.sample`.
      fill: the level of pixels from outside of the image.
    """
    # Barriers, because XLA's compiler for CPUs computes a pixel again for each table, neighbor and mean that reads it.
    x = jax.lax.optimization_barrier(
        sample(x, places(operation, magnitude, x.shape[1], x.shape[2]), interpolation, fill)
    )
    x = jax.lax.optimization_barrier(_blended(x, operation, magnitude))
    tables = jax.lax.optimization_barrier(_tables(x, operation, magnitude))
    found: jax.Array = jax.vmap(lambda image, table: table[jnp.arange(x.shape[3]), image])(x, tables)
    return found


def places(operation: jax.Array, magnitude: jax.Array, height: int, width: int) -> jax.Array:
    """Return the matrices of `warp.matrices` for the operations that move pixels; others keep every pixel."""
    zero, one = jnp.zeros_like(magnitude), jnp.ones_like(magnitude)
    shear_x, shear_y, shift_x, shift_y, turn = (
        jnp.where(operation == _BY_NAME[name], magnitude, 0)
        for name in ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
    )
    turned = matrices(-turn, (jnp.trunc(shift_x), jnp.trunc(shift_y)), one, (zero, zero))
    # Shears keep the first row and the first column, not the center.
    across = jnp.stack([zero, shear_x, shear_x * (height / 2)], -1)
    along = jnp.stack([shear_y, zero, shear_y * (width / 2)], -1)
    return turned + jnp.stack([across, along], 1)


def _blended(x: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    """Return x * factor + other * (1 - factor), rounded down; other is black, gray, the mean gray, or blurred."""
    brightness, color, contrast, sharpness = (
        (operation == _BY_NAME[name])[:, None, None, None] for name in ("brightness", "color", "contrast", "sharpness")
    )
    levels = x.astype(jnp.float32)
    gray = levels
    if x.shape[3] == 3:  # by the weights of torchvision
        weighted = (weight * levels[..., channel] for channel, weight in enumerate((0.2989, 0.587, 0.114)))
        gray = jnp.floor(sum(weighted, jnp.float32(0)))[..., None]
    other = jnp.where(color, gray, jnp.where(contrast, gray.mean(axis=(1, 2), keepdims=True), 0))
    other = jnp.where(sharpness, _blurred(levels), other)
    factor = jnp.where(brightness | color | contrast | sharpness, 1 + magnitude[:, None, None, None], 1)
    changed = jnp.clip(jnp.floor(levels * factor + other * (1 - factor)), 0, 255).astype(x.dtype)
    inside = jnp.zeros(x.shape[1:3], bool).at[1:-1, 1:-1].set(True)[None, :, :, None]
    return jnp.where(sharpness & ~inside, x, changed)


def _blurred(levels: jax.Array) -> jax.Array:
    """Return averages over 3 x 3 pixels that weigh the middle five times, rounded; those at the border have no use."""
    padded = jnp.pad(levels, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return jnp.round((rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * levels) / 13)


def _tables(x: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    """Return the level of each level, (rows, channels, 256) uint8."""
    level = jnp.arange(256)[None, None]
    posterize, solarize, autocontrast, equalize, invert = (
        (operation == _BY_NAME[name])[:, None, None]
        for name in ("posterize", "solarize", "autocontrast", "equalize", "invert")
    )
    value = magnitude[:, None, None]
    dropped = jnp.clip(8 - value.astype(jnp.int32), 0, 8)
    found = jnp.where(posterize, (level >> dropped) << dropped, level)
    found = jnp.where(invert | (solarize & (level >= value)), 255 - level, found)
    # Reductions are several times faster over the last axis, and of uint8 than of int32.
    n, height, width, channels = x.shape
    planes = jax.lax.optimization_barrier(jnp.moveaxis(x, 3, 1).reshape(n, channels, height * width))
    low, high = (reduce(planes, axis=2, keepdims=True).astype(jnp.int32) for reduce in (jnp.min, jnp.max))
    found = jnp.where(autocontrast, _stretched(low, high, level), found)
    return jnp.where(equalize, _equalized(planes, high, level), found).astype(jnp.uint8)


def _stretched(low: jax.Array, high: jax.Array, level: jax.Array) -> jax.Array:
    """Return levels that span 0 to 255 in each channel; a channel of one level stays."""
    scale = (high - low) * jnp.float32(1 / 255)
    stretched = jnp.clip(jnp.floor((level - low) / jnp.where(scale > 0, scale, 1)), 0, 255)
    return jnp.where(scale > 0, stretched.astype(jnp.int32), level)


def _equalized(planes: jax.Array, high: jax.Array, level: jax.Array) -> jax.Array:
    """Return levels that are equally frequent in each channel, by the integer arithmetic of Pillow."""
    n, channels, pixels = planes.shape
    bins = (planes.astype(jnp.int32) + 256 * jnp.arange(channels, dtype=jnp.int32)[:, None]).reshape(n, -1)

    def count(image: jax.Array) -> jax.Array:
        return jnp.zeros(256 * channels, jnp.int32).at[image].add(1, mode="promise_in_bounds")

    counts = jax.lax.optimization_barrier(jax.vmap(count)(bins).reshape(n, channels, 256))
    sums = jax.lax.optimization_barrier(jnp.cumsum(counts, axis=-1))
    # Pillow leaves out the pixels of the highest level.
    step = (pixels - jnp.where(level == high, counts, 0).sum(axis=-1, keepdims=True)) // 255
    # Division of floats takes half the time, and the quotients are the same below 2**24 pixels.
    quotients = (sums - counts + step // 2).astype(jnp.float32) / jnp.maximum(step, 1).astype(jnp.float32)
    return jnp.where(step > 0, jnp.clip(quotients.astype(jnp.int32), 0, 255), level)
