"""Blending two images, and their labels."""

import jax

from resfit.augment.mixing import Mixing, share_of
from resfit.augment.transform import draw, like, to_float


def mixup(alpha: float = 0.2, num_classes: int | None = None) -> Mixing:
    """Blends each image with another one of its batch, and their labels by the same share.

    The share is drawn from Beta(alpha, alpha), one for the whole batch, as in the source's code, timm's default, and
    torchvision's `MixUp`. Integer labels become float32 targets, (batch, classes), in the training step only; any loss
    and metric of resfit takes both. The sample weights stay where they are.

    Source: Zhang et al. (arXiv 1710.09412).

    Args:
      alpha: the larger, the more even the blend; 0.1 to 0.4 in the source for ImageNet, 1 for CIFAR.
      num_classes: of integer labels; None takes it from one of resfit's networks. 1 is a single binary output.

    Raises:
      CompileError: if alpha is not positive.

    Example:
      >>> x = jnp.stack([jnp.zeros((4, 4, 1)), jnp.ones((4, 4, 1))])
      >>> mixed, targets = mixup(alpha=1.0, num_classes=2)(jax.random.key(0), x, jnp.array([0, 1]))
      >>> bool(jnp.allclose(mixed[:, 0, 0, 0], targets[:, 1])), targets.sum(axis=1)
      (True, Array([1., 1.], dtype=float32))
    """
    return Mixing(_mixup, alpha, num_classes)


def _mixup(key: jax.Array, x: jax.Array, partners: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    share = share_of(draw(key, 2), alpha)
    return like(share * to_float(x) + (1 - share) * to_float(partners), x), share
