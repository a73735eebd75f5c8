"""Random shifts, the augmentation of CIFAR."""

import jax
import jax.numpy as jnp
import numpy as np

from resfit._utils.checks import is_int
from resfit.augment.transform import ImageTransform, draw, image_transform, whole
from resfit.errors import CompileError, ImageTooSmallError

_MODES = {"zeros": "constant", "reflect": "reflect"}


def pad_crop(pixels: int = 4, mode: str = "zeros") -> ImageTransform:
    """Return an augmentation that shifts each image by up to `pixels`: it pads every side, then crops at random.

    The same as torchvision's `RandomCrop(size, padding=pixels)`. Source: He et al. (arXiv 1512.03385), section 4.2.

    Args:
      pixels: the padding on each side; 4 in the source, for images of 32 x 32.
      mode: "zeros" (black for uint8; the mean color for standardized floats), or "reflect", which mirrors the image at
        its outermost pixels.

    Raises:
      CompileError: for less than one pixel, or an unknown mode.

    Example:
      >>> x = jnp.ones((2, 32, 32, 3), jnp.uint8)
      >>> pad_crop(4)(jax.random.key(0), x, None)[0].shape
      (2, 32, 32, 3)
    """
    if not is_int(pixels, 1):
        raise CompileError(f"augment.pad_crop got pixels={pixels!r}. Expected a positive integer.")
    if mode not in _MODES:
        raise CompileError(f"augment.pad_crop got mode={mode!r}. Expected one of {list(_MODES)}.")
    return image_transform(_pad_crop, pixels=int(pixels), mode=mode)


def _pad_crop(key: jax.Array, x: jax.Array, pixels: int, mode: str) -> jax.Array:
    n, *shape = x.shape
    if mode == "reflect" and pixels >= min(shape[:2]):
        raise ImageTooSmallError(
            f"augment.pad_crop(pixels={pixels}, mode='reflect') got images of {shape[0]} x {shape[1]} pixels. Expected "
            f"more than {pixels} in both directions. Use fewer pixels, or mode='zeros'."
        )
    padded = jnp.pad(x, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode=_MODES[mode])
    corners = whole(draw(key, n, 2), 2 * pixels + 1)  # top, left

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], np.int32(0)), shape)

    return jax.vmap(crop)(padded, corners)
