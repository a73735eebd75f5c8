"""The resizing of training batches to the image size of an epoch, see `fit(image_sizes=...)`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from resfit._utils.jax_switches import implicit_promotion
from resfit.augment.masks import moved
from resfit.augment.random_resized_crop import nearest
from resfit.augment.transform import as_images, like, to_float
from resfit.errors import RankError

_CALL = "fit(image_sizes=...)"


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Resize:
    """A resizing of whole images: a static part of a batch, so that each size has its own compiled step.

    Resizing is bilinear, with antialiasing where it shrinks; masks and weights of pixels get the nearest pixel.

    Attributes:
      height: of the result, in pixels.
      width: of the result, in pixels.

    Example:
      >>> x, y = jnp.ones((2, 48, 40, 3), jnp.uint8), jnp.zeros((2, 48, 40), jnp.int32)
      >>> x, (y, weight) = Resize(32, 24)(x, (y, None))
      >>> x.shape, y.shape
      ((2, 32, 24, 3), (2, 32, 24))
    """

    height: int
    width: int

    @implicit_promotion()
    def __call__(self, x: Any, y: Any) -> tuple[jax.Array, Any]:
        """Return the resized images, and a pytree of labels and weights in which entries by pixel are resized alike.

        Raises:
          RankError: if x is not one array of images.
          DataError: if the images are neither uint8 nor floats.
          LabelError: for masks of another size than the images.
        """
        if getattr(x, "ndim", None) != 4:
            got = f"shape {x.shape}" if hasattr(x, "shape") else f"a {type(x).__name__}"
            raise RankError(
                f"fit got image_sizes and inputs of {got}. Expected one array of images, (batch, height, width, "
                "channels). Leave image_sizes out."
            )
        x = as_images(_CALL, x)
        return like(self._resized(to_float(x)), x), moved(_CALL, y, x, self._of_nearest)

    def _resized(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[0], self.height, self.width, x.shape[3])
        # Full precision: devices that multiply matrices in fewer bits would lose bits of uint8 images.
        highest = jax.lax.Precision.HIGHEST
        return jnp.asarray(jax.image.resize(x, shape, "linear", antialias=True, precision=highest))

    def _of_nearest(self, masks: jax.Array) -> jax.Array:
        start, sides = jnp.zeros(1, jnp.int32), (masks.shape[1:2], masks.shape[2:3])
        rows, columns = (
            nearest(start, jnp.array(side), size)[0]
            for side, size in zip(sides, (self.height, self.width), strict=True)
        )
        return masks[:, rows][:, :, columns]

    def __str__(self) -> str:
        return f"{self.height} x {self.width}"
