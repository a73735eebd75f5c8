"""Mixup: blending two images and their labels."""

import jax

from resfit._utils.keywords import checked
from resfit.augment.mixing import Mixing, share_of
from resfit.augment.transform import draw, like, to_float


@checked("function arguments")
def mixup(alpha: float = 0.2, num_classes: int | None = None) -> Mixing:
    """Return an augmentation that blends each image, and its label, with another one of the batch.

    One share for the whole batch is drawn from Beta(alpha, alpha), as in the source's code, timm's default and
    torchvision's `MixUp`. In the training step, integer labels become float32 targets (batch, classes); all losses and
    metrics of resfit read both. Sample weights are not mixed.

    Source: Zhang et al. (arXiv 1710.09412).

    Args:
      alpha: the parameter of the Beta distribution. A larger value gives a more even blend; the source uses 0.1 to 0.4
        for ImageNet and 1 for CIFAR.
      num_classes: the number of classes of integer labels; 1 for a single binary output. By default, `compile` takes
        the number from a network of resfit.

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
