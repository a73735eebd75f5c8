"""Horizontal flips."""

import jax
import jax.numpy as jnp

from resfit._utils.keywords import checked
from resfit.augment.transform import ImageTransform, draw, image_transform, require_share


@checked("function arguments")
def flip(probability: float = 0.5) -> ImageTransform:
    """Return an augmentation that mirrors each image, and its mask, left to right with a probability.

    Do not use it for digits, letters or road signs. The same as torchvision's `RandomHorizontalFlip` and Keras's
    `RandomFlip("horizontal")`.

    Args:
      probability: the probability of a flip, for each image.

    Raises:
      CompileError: if the probability is not between 0 and 1.

    Example:
      >>> x = jnp.array([[[[1.0], [2.0], [3.0]]]])
      >>> flip(probability=1.0)(jax.random.key(0), x, None)[0][0, 0, :, 0]
      Array([3., 2., 1.], dtype=float32)
    """
    require_share("flip", "probability", probability)
    return image_transform(_flip, _flip, probability=probability)


def _flip(key: jax.Array, x: jax.Array, probability: float) -> jax.Array:
    mirrored = draw(key, x.shape[0], 1, 1, 1) < probability
    return jnp.where(mirrored, x[:, :, ::-1], x)
