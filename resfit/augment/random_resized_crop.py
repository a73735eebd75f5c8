"""Random resized crops, the augmentation of ImageNet."""

import math

import jax
import jax.numpy as jnp

from resfit._utils.checks import is_int
from resfit._utils.keywords import checked
from resfit.augment.boxes import DRAWS, Boxes, inside, random_boxes
from resfit.augment.transform import ImageTransform, draw, image_transform, like, require_range, to_float
from resfit.errors import CompileError


@checked("function arguments")
def random_resized_crop(
    size: int | tuple[int, int],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> ImageTransform:
    """Return an augmentation that crops each image at random and resizes the crop to `size`.

    The same as torchvision's `RandomResizedCrop`: the crop is the first of ten attempts at an area and a ratio that
    fits, or else the largest allowed crop in the center. Resizing is bilinear, with antialiasing where it shrinks;
    masks get the nearest pixel. Only training images get this size. If you want another size in evaluation, resize the
    dataset to it. Source: Szegedy et al. (arXiv 1409.4842), section 6.

    Args:
      size: the size of the result in pixels: one number, or (height, width).
      scale: the smallest and the largest share of the image's area.
      ratio: the smallest and the largest width / height.

    Raises:
      CompileError: for a size below one pixel, or an invalid range.

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
    return image_transform(_random_resized_crop, _crop_masks, size=sides, scale=tuple(scale), ratio=tuple(ratio))


def _random_resized_crop(
    key: jax.Array, x: jax.Array, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> jax.Array:
    crops = crops_of(draw(key, x.shape[0], DRAWS), (x.shape[1], x.shape[2]), scale, ratio)
    return like(resized(to_float(x), crops, size), x)


def _crop_masks(
    key: jax.Array, masks: jax.Array, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> jax.Array:
    crops = crops_of(draw(key, masks.shape[0], DRAWS), (masks.shape[1], masks.shape[2]), scale, ratio)
    rows, columns = nearest(crops.top, crops.height, size[0]), nearest(crops.left, crops.width, size[1])
    masks = jnp.take_along_axis(masks, rows[:, :, None, None], axis=1)
    return jnp.take_along_axis(masks, columns[:, None, :, None], axis=2)


def nearest(start: jax.Array, length: jax.Array, size_out: int) -> jax.Array:
    """Return the input pixel at the center of each output pixel, (n, size_out), for (n,) starts and lengths."""
    centres = (2 * jnp.arange(size_out)[None, :] + 1) * length[:, None]  # in halves of an output pixel
    return start[:, None] + centres // (2 * size_out)


def crops_of(
    uniform: jax.Array, image: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> Boxes:
    """Return one crop of an image (height, width) for each row of random numbers, (n, DRAWS) in [0, 1)."""
    crops, found = random_boxes(uniform, image, image, scale, ratio)
    # If no attempt fits, take the largest crop in the center whose ratio is allowed.
    height = min(image[0], max(1, round(image[1] / ratio[0])))
    width = min(image[1], max(1, round(image[0] * ratio[1])))
    middle = ((image[0] - height) // 2, (image[1] - width) // 2, height, width)
    return Boxes(*(jnp.where(found, drawn, fixed) for drawn, fixed in zip(crops, middle, strict=True)))


def resized(x: jax.Array, boxes: Boxes, size: tuple[int, int]) -> jax.Array:
    """Return the inside of one box per image, resized. Pixels outside the box have no influence.

    Args:
      x: images (batch, height, width, channels), float.
      boxes: one box inside each image.
      size: (height, width) of the result.
    """
    rows = scaling_weights(boxes.top, boxes.height, x.shape[1], size[0])
    columns = scaling_weights(boxes.left, boxes.width, x.shape[2], size[1])
    # Full precision: devices that multiply matrices in fewer bits would lose bits of uint8 images.
    highest = jax.lax.Precision.HIGHEST
    x = jnp.einsum("nih,nhwc->niwc", rows.astype(x.dtype), x, precision=highest)
    return jnp.einsum("njw,niwc->nijc", columns.astype(x.dtype), x, precision=highest)


def scaling_weights(start: jax.Array, length: jax.Array, size_in: int, size_out: int) -> jax.Array:
    """Return weights (n, size_out, size_in) of input pixels in output pixels, for (n,) starts and lengths."""
    step = (length / size_out)[:, None, None]
    centres = start[:, None, None] + (jnp.arange(size_out)[None, :, None] + 0.5) * step
    distance = jnp.abs(jnp.arange(size_in)[None, None, :] + 0.5 - centres)
    # A triangle that reaches the neighboring pixel of the input or the output, whichever pixels are larger.
    weights = jnp.maximum(1 - distance / jnp.maximum(step, 1), 0)
    weights = jnp.where(inside(start, length, size_in)[:, None, :], weights, 0)
    return weights / weights.sum(axis=2, keepdims=True)
