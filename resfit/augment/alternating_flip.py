"""Horizontal flips that alternate from one pass over the data to the next."""

import dataclasses
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resfit._utils.checks import is_int
from resfit._utils.jax_switches import implicit_promotion
from resfit._utils.keywords import checked
from resfit.augment.masks import moved
from resfit.augment.transform import as_images
from resfit.errors import CompileError, DataError


@dataclasses.dataclass(frozen=True)
class AlternatingFlip:
    """The result of `alternating_flip`. Equal objects compare equal.

    Args:
      seed: of the half that is mirrored first.
    """

    seed: int = 0

    def __call__(self, key: jax.Array, x: Any, y: Any) -> tuple[Any, Any]:
        """Raise DataError: the images alone do not tell which examples they are, see `by_origin`."""
        return self.by_origin(x, y, None)

    @implicit_promotion()
    def by_origin(self, x: Any, y: Any, origin: Any) -> tuple[jax.Array, Any]:
        """Return the images and masks, mirrored if it is their turn.

        Args:
          x: images (batch, height, width, channels).
          y: labels of any kind.
          origin: (batch, 3) int32, see `data.Batch`.

        Raises:
          DataError: without an origin.
        """
        if origin is None:
            raise DataError(
                "augment.alternating_flip got a batch that does not tell which examples it has. Expected `fit` with "
                "arrays, image files or another dataset that resfit cuts into batches: an iterable of batches, "
                "train_on_batch and augment.one_of do not number their examples. Use augment.flip() there."
            )
        x, mirrored = as_images("alternating_flip", x), _turns(origin, self.seed)

        def turn(pixels: jax.Array) -> jax.Array:
            return jnp.where(mirrored[:, None, None, None], pixels[:, :, ::-1], pixels)

        return turn(x), moved("alternating_flip", y, x, turn)

    def __repr__(self) -> str:
        return f"alternating_flip(seed={self.seed})"


@checked("function arguments")
def alternating_flip(seed: int = 0) -> AlternatingFlip:
    """Return an augmentation that mirrors one half of the images in one pass over the data, and the others in the next.

    In two passes, every image is seen once as it is and once mirrored, where `flip()` shows half of the images twice
    alike. The halves depend on the seed and on the number of the example in its dataset, so they are the same with
    shuffling, after a resumed run, and on any number of devices. After `repeated_augmentation`, the copies of an
    example alternate.

    It needs data whose examples have numbers: arrays, image files, sources and streams of `resfit.data`, and datasets
    with random access. Masks move with their images.

    Source: Jordan (arXiv 2404.00498), section 3.6.

    Args:
      seed: of the half that is mirrored in the first pass; an integer of at least 0.

    Raises:
      CompileError: for any other seed.

    Example:
      >>> alternating_flip()
      alternating_flip(seed=0)
    """
    if not is_int(seed, 0):
        raise CompileError(f"augment.alternating_flip got seed={seed!r}. Expected an integer of at least 0.")
    return AlternatingFlip(int(seed))


@implicit_promotion()
def seen_again(origin: Any, copies: int) -> Any:
    """Return the origin of rows that were repeated: each copy counts as another pass over the data.

    Args:
      origin: (rows * copies, 3) int32, the copies of a row follow one another; or None.
      copies: of each row.
    """
    if origin is None:
        return None
    copy = jnp.arange(len(origin), dtype=origin.dtype) % copies
    return origin.at[:, 2].set(origin[:, 2] * copies + copy)


def _turns(origin: jax.Array, seed: int) -> jax.Array:
    """Return True for the rows to mirror, (rows,)."""
    shard, row, number = (origin[:, column].astype(jnp.uint32) for column in range(3))
    # A checksum, because a seed can have more than 32 bits.
    start = np.uint32(zlib.crc32(str(seed).encode()))
    return (_mixed(row ^ _mixed(shard ^ start)) + number) & 1 == 1


def _mixed(value: jax.Array) -> jax.Array:
    """Return 32 bits each of which depends on all bits of the value: the finalizer of MurmurHash3 (Appleby, 2008)."""
    value = (value ^ (value >> 16)) * jnp.uint32(0x85EBCA6B)
    value = (value ^ (value >> 13)) * jnp.uint32(0xC2B2AE35)
    return value ^ (value >> 16)
