"""Gray images."""

import jax
import jax.numpy as jnp

from resfit._utils.keywords import checked
from resfit.augment.color_jitter import luma
from resfit.augment.transform import ImageTransform, draw, image_transform, like, require_share, to_float
from resfit.errors import DataError


@checked("function arguments")
def gray(probability: float = 0.1) -> ImageTransform:
    """Return an augmentation that makes each image gray with a probability, with equal red, green and blue.

    The same as torchvision's `RandomGrayscale`, which rounds down. Images of one channel do not change.

    Args:
      probability: the probability of a gray image, for each image.

    Raises:
      CompileError: if the probability is not between 0 and 1.

    Example:
      >>> x = jnp.array([[[[100, 200, 50]]]], jnp.uint8)
      >>> gray(probability=1.0)(jax.random.key(0), x, None)[0][0, 0, 0]
      Array([153, 153, 153], dtype=uint8)
    """
    require_share("gray", "probability", probability)
    return image_transform(_gray, probability=probability)


def _gray(key: jax.Array, x: jax.Array, probability: float) -> jax.Array:
    channels = x.shape[3]
    if channels not in (1, 3):
        raise DataError(
            f"augment.gray got images of {channels} channels, shape {x.shape}. Expected 1 (gray) or 3 (red, green, "
            "blue)."
        )
    chosen = draw(key, x.shape[0], 1, 1, 1) < probability
    if channels == 1:
        return x
    planes = [to_float(x[..., channel]) for channel in range(channels)]
    return jnp.where(chosen, like(luma(planes), x)[..., None], x)
