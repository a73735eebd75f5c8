"""Augmentations that make several copies of each example, on which a step trains together."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from resfit._utils.checks import is_int
from resfit._utils.keywords import checked
from resfit.augment.transform import as_images
from resfit.errors import CompileError


class Copying:
    """The base class of augmentations that return several rows for each row, which follow one another.

    Attributes:
      copies: the number of rows for each row.
    """

    copies: int


@dataclasses.dataclass(frozen=True)
class Repeated(Copying):
    """The result of `repeated_augmentation`. Equal objects compare equal.

    Args:
      copies: the number of copies of each example.
    """

    copies: int

    def __call__(self, key: jax.Array, x: Any, y: Any) -> tuple[Any, Any]:
        """Return every image and its label several times: the copies of an image follow one another."""
        x = as_images("repeated_augmentation", x)
        return repeated(x, self.copies), repeated(y, self.copies)

    def __repr__(self) -> str:
        return f"repeated_augmentation(k={self.copies})"


@checked("function arguments")
def repeated_augmentation(k: int) -> Repeated:
    """Return an augmentation that puts k copies of each example into a batch, which later ones augment independently.

    A batch of `batch_size` examples has k * `batch_size` images in the step: the augmentations before this one see each
    example once, those after it every copy. The loss, the gradient, BatchNorm and the metrics of training are those of
    all copies. An epoch stays one pass over the data, of examples / batch_size steps, each k times as long. With other
    libraries' samplers, such as timm's `--aug-repeats k`, a batch of B images has B / k examples, and an epoch of N / B
    steps sees N / k of the N examples: `batch_size=B // k` and `epochs / k` give the same steps.

    Source: Hoffer et al. (arXiv 1901.09335).

    Args:
      k: the number of copies of each example, at least 2. The memory of a step grows by the same factor;
        `compile(gradient_accumulation_steps=k)` divides it again, with BatchNorm over slices.

    Raises:
      CompileError: for any other k.

    Example:
      >>> from resfit.augment import flip
      >>> from resfit.augment.pipeline import get
      >>> get([repeated_augmentation(2), "cifar"])
      (repeated_augmentation(k=2), pad_crop(pixels=4, mode='zeros'), flip(probability=0.5))
      >>> x, y = repeated_augmentation(2)(jax.random.key(0), jnp.ones((3, 8, 8, 1)), jnp.arange(3))
      >>> x.shape, y
      ((6, 8, 8, 1), Array([0, 0, 1, 1, 2, 2], dtype=int32))
    """
    if not is_int(k, 2):
        raise CompileError(
            f"augment.repeated_augmentation got k={k!r}. Expected a number of copies, an integer of at least 2."
        )
    return Repeated(int(k))


def copies_of(augments: Iterable[Any]) -> int:
    """Return the number of rows that augmentations in order make of each example.

    Example:
      >>> copies_of([repeated_augmentation(2), repeated_augmentation(3)])
      6
    """
    copies = 1
    for augment in augments:
        copies *= augment.copies if isinstance(augment, Copying) else 1
    return copies


def repeated(tree: Any, copies: int) -> Any:
    """Return arrays (rows, ...) with every row several times: the copies of a row follow one another."""

    def one(leaf: Any) -> jax.Array:
        # A broadcast: rows stay on their devices.
        leaf = jnp.asarray(leaf)
        return jnp.broadcast_to(leaf[:, None], (len(leaf), copies, *leaf.shape[1:])).reshape(-1, *leaf.shape[1:])

    return jax.tree.map(one, tree)
