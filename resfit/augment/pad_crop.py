"""Random shifts, the augmentation of CIFAR."""

import jax
import jax.numpy as jnp
import numpy as np

from resfit._utils.checks import is_int
from resfit._utils.keywords import checked
from resfit.augment.masks import fill_argument, filling
from resfit.augment.transform import ImageTransform, draw, image_transform, whole
from resfit.errors import CompileError, ImageTooSmallError, LabelError

_MODES = {"zeros": "constant", "reflect": "reflect"}


@checked("function arguments")
def pad_crop(pixels: int = 4, mode: str = "zeros", mask_fill: int | None = None) -> ImageTransform:
    """Return an augmentation that shifts each image by up to `pixels`: it pads every side, then crops at random.

    The same as torchvision's `RandomCrop(size, padding=pixels)`. Source: He et al. (arXiv 1512.03385), section 4.2.

    Args:
      pixels: the padding on each side; 4 in the source, for images of 32 x 32.
      mode: "zeros" (black for uint8; the mean color for standardized floats), or "reflect", which mirrors the image at
        its outermost pixels.
      mask_fill: the label of the padding of masks with mode="zeros": 255 with `CrossEntropy(ignore_index=255)`, or the
        class of the background. Masks need it, other labels do not.

    Raises:
      CompileError: for less than one pixel, an unknown mode, or a mask_fill that is not an integer.

    Example:
      >>> x = jnp.ones((2, 32, 32, 3), jnp.uint8)
      >>> pad_crop(4)(jax.random.key(0), x, None)[0].shape
      (2, 32, 32, 3)
    """
    if not is_int(pixels, 1):
        raise CompileError(f"augment.pad_crop got pixels={pixels!r}. Expected a positive integer.")
    if mode not in _MODES:
        raise CompileError(f"augment.pad_crop got mode={mode!r}. Expected one of {list(_MODES)}.")
    arguments = fill_argument("pad_crop", mask_fill)
    return image_transform(_pad_crop, _pad_crop_masks, pixels=int(pixels), mode=mode, **arguments)


def _pad_crop(key: jax.Array, x: jax.Array, pixels: int, mode: str, mask_fill: int | None = None) -> jax.Array:
    shape = x.shape[1:]
    if mode == "reflect" and pixels >= min(shape[:2]):
        raise ImageTooSmallError(
            f"augment.pad_crop(pixels={pixels}, mode='reflect') got images of {shape[0]} x {shape[1]} pixels. Expected "
            f"more than {pixels} in both directions. Use fewer pixels, or mode='zeros'."
        )
    return _crop(key, jnp.pad(x, _widths(pixels), mode=_MODES[mode]), pixels)


def _pad_crop_masks(
    key: jax.Array, masks: jax.Array, pixels: int, mode: str, mask_fill: int | None = None
) -> jax.Array:
    if mode == "reflect":
        return _crop(key, jnp.pad(masks, _widths(pixels), mode="reflect"), pixels)
    if mask_fill is None:
        raise LabelError(
            f"augment.pad_crop({pixels}) pads masks, of shape {masks.shape[:3]}, and got no label for the padding. "
            f"Expected augment.pad_crop({pixels}, mask_fill=255) with the loss CrossEntropy(ignore_index=255), "
            "mask_fill=0 if class 0 is the background, or mode='reflect'."
        )
    padding = filling("pad_crop", masks, mask_fill)
    return _crop(key, jnp.pad(masks, _widths(pixels), constant_values=padding), pixels)


def _widths(pixels: int) -> tuple[tuple[int, int], ...]:
    return ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))


def _crop(key: jax.Array, padded: jax.Array, pixels: int) -> jax.Array:
    n, height, width, channels = padded.shape
    shape = (height - 2 * pixels, width - 2 * pixels, channels)
    corners = whole(draw(key, n, 2), 2 * pixels + 1)  # top, left

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], np.int32(0)), shape)

    return jax.vmap(crop)(padded, corners)
