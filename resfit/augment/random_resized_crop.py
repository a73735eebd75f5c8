"""Crops of random size and shape, scaled to one size: the augmentation of ImageNet."""

import math

import jax
import jax.numpy as jnp

from resfit._utils.checks import is_int
from resfit.augment.boxes import DRAWS, Boxes, inside, random_boxes
from resfit.augment.transform import ImageTransform, draw, image_transform, like, require_range, to_float
from resfit.errors import CompileError


def random_resized_crop(
    size: int | tuple[int, int],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> ImageTransform:
    """Crops each image at random, and scales what is left to `size`.

    The same as torchvision's `RandomResizedCrop`: ten attempts at an area and a ratio, of which the first that fits is
    taken, else the largest crop in the middle; then bilinear scaling, antialiased where it makes the crop smaller.
    Training images then have another size than those of evaluation unless the data have this size already: resize them
    to the size that you want to evaluate at. Source: Szegedy et al. (arXiv 1409.4842), section 6.

    Args:
      size: of the images that come out, in pixels: one number, or (height, width).
      scale: smallest and largest share of the image's area.
      ratio: smallest and largest width / height.

    Raises:
      CompileError: for a size below one pixel, or a range that is none.

    Example:
      >>> x = jnp.ones((2, 48, 40, 3), jnp.uint8)
      >>> random_resized_crop(32)(jax.random.key(0), x, None)[0].shape
      (2, 32, 32, 3)
    """
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or not all(is_int(side, 1) for side in sides):
        raise CompileError(
            f"augment.random_resized_crop got size={size!r}. Expected a number of pixels, or (height, width)."
        )
    require_range("random_resized_crop", "scale", scale, 1)
    require_range("random_resized_crop", "ratio", ratio, math.inf)
    sides = tuple(map(int, sides))
    return image_transform(_random_resized_crop, size=sides, scale=tuple(scale), ratio=tuple(ratio))


def _random_resized_crop(
    key: jax.Array, x: jax.Array, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> jax.Array:
    crops = crops_of(draw(key, x.shape[0], DRAWS), (x.shape[1], x.shape[2]), scale, ratio)
    return like(resized(to_float(x), crops, size), x)


def crops_of(
    uniform: jax.Array, image: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> Boxes:
    """One crop of an image of (height, width) for each row of numbers, (n, DRAWS) in [0, 1)."""
    crops, found = random_boxes(uniform, image, image, scale, ratio)
    # Nothing fitted: the largest crop in the middle whose shape is allowed.
    height = min(image[0], max(1, round(image[1] / ratio[0])))
    width = min(image[1], max(1, round(image[0] * ratio[1])))
    middle = ((image[0] - height) // 2, (image[1] - width) // 2, height, width)
    return Boxes(*(jnp.where(found, drawn, fixed) for drawn, fixed in zip(crops, middle, strict=True)))


def resized(x: jax.Array, boxes: Boxes, size: tuple[int, int]) -> jax.Array:
    """The inside of one box per image, scaled; what lies outside of it has no influence.

    Args:
      x: (batch, height, width, channels) float.
      boxes: inside of the images.
      size: (height, width) of what comes out.
    """
    rows = scaling_weights(boxes.top, boxes.height, x.shape[1], size[0])
    columns = scaling_weights(boxes.left, boxes.width, x.shape[2], size[1])
    # At full precision: where a device multiplies matrices in fewer bits, uint8 images would lose theirs.
    highest = jax.lax.Precision.HIGHEST
    x = jnp.einsum("nih,nhwc->niwc", rows.astype(x.dtype), x, precision=highest)
    return jnp.einsum("njw,niwc->nijc", columns.astype(x.dtype), x, precision=highest)


def scaling_weights(start: jax.Array, length: jax.Array, size_in: int, size_out: int) -> jax.Array:
    """(n, size_out, size_in) float32: how much each old pixel gives to each new one, for (n,) starts and lengths."""
    step = (length / size_out)[:, None, None]
    centres = start[:, None, None] + (jnp.arange(size_out)[None, :, None] + 0.5) * step
    distance = jnp.abs(jnp.arange(size_in)[None, None, :] + 0.5 - centres)
    # A triangle that reaches to the neighbouring pixel, of whichever size has the larger ones.
    weights = jnp.maximum(1 - distance / jnp.maximum(step, 1), 0)
    weights = jnp.where(inside(start, length, size_in)[:, None, :], weights, 0)
    return weights / weights.sum(axis=2, keepdims=True)
