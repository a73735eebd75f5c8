"""The base of augmentations that mix each example with another one of the batch."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp

from resfit._utils.checks import is_int, is_number
from resfit._utils.jax_switches import implicit_promotion
from resfit.augment.masks import is_mask, moved
from resfit.augment.transform import as_images
from resfit.errors import CompileError, LabelError


@dataclasses.dataclass(frozen=True)
class Mixing:
    """An augmentation that mixes each example with the previous one of the batch, and the first with the last.

    Batches are in random order, so the previous example is a random one. A batch that is split over devices then
    exchanges one row between neighbors and is not gathered; torchvision does the same. A batch of one example keeps its
    image. All examples of a batch share one random share, as in both papers, so the mean label stays the same. Equal
    objects compare equal.

    Args:
      mix: a function (key, x, partners, alpha) -> (mixed x, share of x); the share is () float32.
      alpha: the parameter of the Beta(alpha, alpha) distribution of the share.
      num_classes: the number of classes of integer labels; None until `compile` sets it.
      moves_pixels: True if every pixel of the result is one of an image, so that masks move alike.
      distance: of the row that each row is mixed with: the copies of an example, or 1.
    """

    mix: Callable[[jax.Array, jax.Array, jax.Array, float], tuple[jax.Array, jax.Array]]
    alpha: float
    num_classes: int | None
    moves_pixels: bool = False
    distance: int = 1

    def __post_init__(self) -> None:
        if not is_number(self.alpha) or not 0 < self.alpha < float("inf"):
            raise CompileError(f"augment.{self._name} got alpha={self.alpha!r}. Expected a positive number.")
        if self.num_classes is not None and not is_int(self.num_classes, 1):
            raise CompileError(
                f"augment.{self._name} got num_classes={self.num_classes!r}. Expected the number of the network's "
                "outputs, or None to take it from the network."
            )

    @implicit_promotion()
    def __call__(self, key: jax.Array, x: Any, y: Any) -> tuple[jax.Array, jax.Array]:
        """Return the mixed images, in the same shape and dtype, and float32 targets, or masks whose pixels moved alike.

        Raises:
          LabelError: if there are no labels, if the number of classes is unknown, or for masks whose pixels blend.
        """
        x = as_images(self._name, x)
        if is_mask(y) and self.moves_pixels:
            mixed, _ = self.mix(key, x, self._partners(x), self.alpha)
            return mixed, moved(self._name, y, x, lambda m: self.mix(key, m, self._partners(m), self.alpha)[0])
        y = self._targets(y)
        x, share = self.mix(key, x, self._partners(x), self.alpha)
        share = share.astype(jnp.float32)  # float64 in JAX's 64-bit mode
        return x, share * y + (1 - share) * self._partners(y)

    def _partners(self, rows: jax.Array) -> jax.Array:
        return jnp.roll(rows, self.distance, axis=0)

    def for_classes(self, num_classes: int | None, copies: int = 1) -> Self:
        """Return a copy with the number of classes, if it has none yet, which mixes with the next other example."""
        classes = num_classes if self.num_classes is None else self.num_classes
        return dataclasses.replace(self, num_classes=classes, distance=copies)

    def __repr__(self) -> str:
        return f"{self._name}(alpha={self.alpha}, num_classes={self.num_classes})"

    @property
    def _name(self) -> str:
        return self.mix.__name__.removeprefix("_")

    def _targets(self, y: Any) -> jax.Array:
        """Return labels that can be mixed: class numbers as one-hot targets, other labels as floats."""
        if not hasattr(y, "dtype"):
            raise LabelError(
                f"augment.{self._name} mixes labels and got {'none' if y is None else f'a {type(y).__name__}'}. "
                "Expected one array: class numbers (batch,) or targets."
            )
        if is_mask(y) and not jnp.issubdtype(y.dtype, jnp.floating) and (y.ndim == 3 or y.shape[3] == 1):
            raise LabelError(
                f"augment.{self._name} blends images, and got masks of shape {y.shape}, {y.dtype}. Expected one label "
                "per example: a blended pixel has no class number. Use augment.cutmix(), which moves pixels and masks."
            )
        column = y.ndim == 1 or y.shape[1:] == (1,)
        class_numbers = jnp.issubdtype(y.dtype, jnp.integer) and column and self.num_classes != 1
        if not class_numbers:
            return jnp.asarray(y, jnp.float32)  # targets, or 0 and 1 for a single output
        if self.num_classes is None:
            raise LabelError(
                f"augment.{self._name} got class numbers, labels of shape {y.shape}, {y.dtype}, and the number of "
                f"classes of this network is unknown. Expected augment.{self._name}(num_classes=10), with the number "
                "of the network's outputs (1 for a single binary output)."
            )
        y = y.reshape(-1)
        known = (y >= 0) & (y < self.num_classes)
        # The one-hot row of an unknown class is all zeros, which would be mixed like a valid target.
        return jnp.where(known[:, None], jax.nn.one_hot(y, self.num_classes, dtype=jnp.float32), jnp.nan)


def share_of(uniform: jax.Array, alpha: float) -> jax.Array:
    """Return a number from Beta(alpha, alpha), made of two uniform numbers.

    The method is exact. `jax.random.beta` takes seconds to compile.

    Source: Devroye, Random variate generation in one line of code (1996), after Ulrich (1984) and Bailey (1994).

    Args:
      uniform: two random numbers (2,) in [0, 1).
      alpha: a positive number.

    Returns:
      () float32 in [0, 1].
    """
    radius = jnp.expm1(-jnp.log(uniform[0]) / alpha)  # squared radius; infinity means a share of 0 or 1
    cosine = jnp.cos(2 * jnp.pi * uniform[1])
    # In a fused program, rounding can leave the range by 2**-24.
    return jnp.clip(0.5 + 0.5 * cosine / jnp.sqrt(1 / radius + cosine**2), 0, 1)
