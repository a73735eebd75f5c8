"""CutMix: pasting a rectangle of one image into another and mixing the labels."""

import jax
import jax.numpy as jnp

from resfit._utils.keywords import checked
from resfit.augment.boxes import Boxes, mask
from resfit.augment.mixing import Mixing, share_of
from resfit.augment.transform import draw, whole


@checked("function arguments")
def cutmix(alpha: float = 1.0, num_classes: int | None = None) -> Mixing:
    """Return an augmentation that pastes a rectangle of another image of the batch into each image.

    One rectangle is drawn for the whole batch. Its share of the area is 1 minus a number from Beta(alpha, alpha), and
    its center is uniform. The rectangle is clipped to the image, and the labels are mixed by the area that remains. The
    source's code, timm and torchvision's `CutMix` do the same. Labels are treated as in `mixup`; the rectangle of a
    mask is pasted like that of its image.

    Source: Yun et al. (arXiv 1905.04899).

    Args:
      alpha: the parameter of the Beta distribution; 1 in the source, where every area is equally likely.
      num_classes: the number of classes of integer labels; 1 for a single binary output. By default, `compile` takes
        the number from a network of resfit.

    Raises:
      CompileError: if alpha is not positive.

    Example:
      >>> x = jnp.stack([jnp.zeros((4, 4, 1)), jnp.ones((4, 4, 1))])
      >>> mixed, targets = cutmix(num_classes=2)(jax.random.key(0), x, jnp.array([0, 1]))
      >>> bool(jnp.allclose(mixed.mean(axis=(1, 2, 3)), targets[:, 1]))
      True
    """
    return Mixing(_cutmix, alpha, num_classes, moves_pixels=True)


def _cutmix(key: jax.Array, x: jax.Array, partners: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    height, width = x.shape[1:3]
    uniform = draw(key, 4)
    half = jnp.sqrt(1 - share_of(uniform[:2], alpha)) / 2

    def cut(uniform: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        centre, reach = whole(uniform, size), (half * size).astype(jnp.int32)
        start = jnp.maximum(centre - reach, 0)
        return start, jnp.minimum(centre + reach, size) - start

    (top, rows), (left, columns) = cut(uniform[2:3], height), cut(uniform[3:4], width)
    pasted = mask(Boxes(top, left, rows, columns), (height, width))
    share = 1 - (rows * columns)[0] / (height * width)
    return jnp.where(pasted, partners, x), share
