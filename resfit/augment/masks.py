"""Labels with one entry per pixel, which move together with the pixels of their images."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resfit._utils.checks import is_int
from resfit.errors import CompileError, LabelError


def public(name: str) -> str:
    """Return what a user calls: a function of `augment` by its name, or a call as it is."""
    return name if "(" in name else f"augment.{name}"


def is_mask(y: Any) -> bool:
    """Return True for an array with axes of pixels, (batch, height, width) or (batch, height, width, channels)."""
    return getattr(y, "ndim", 0) > 2


def moved(name: str, y: Any, x: jax.Array, move: Callable[[jax.Array], jax.Array]) -> Any:
    """Return labels in which masks are moved, and all others are unchanged.

    Args:
      name: the name of the augmentation, or a call such as "fit(image_sizes=...)", for messages.
      y: labels of any kind, or a pytree of such.
      x: the images before the augmentation, (batch, height, width, channels).
      move: a function of masks (batch, height, width, channels), of any dtype.

    Raises:
      LabelError: for masks of another size than the images.
    """
    if not any(is_mask(leaf) for leaf in jax.tree.leaves(y)):
        return y

    def one(leaf: Any) -> Any:
        if not is_mask(leaf):
            return leaf
        if leaf.shape[:3] != x.shape[:3] or leaf.ndim > 4:
            raise LabelError(
                f"{public(name)} moves pixels, and got images of shape {x.shape} and labels of shape {leaf.shape}. "
                f"Expected one label per example, or masks of the size of the images, {x.shape[:3]}. Resize the masks "
                "to the images (nearest neighbor) and the outputs of the network to the masks, or pass a custom "
                "function (key, x, y) -> (x, y)."
            )
        masks = jnp.asarray(leaf)
        return move(masks[..., None])[..., 0] if masks.ndim == 3 else move(masks)

    return jax.tree.map(one, y)


def fill_argument(name: str, mask_fill: int | None) -> dict[str, int]:
    """Return `mask_fill` as an argument of an `ImageTransform`, if it was given.

    Raises:
      CompileError: if it is not an integer.
    """
    if mask_fill is not None and not is_int(mask_fill):
        raise CompileError(
            f"augment.{name} got mask_fill={mask_fill!r}. Expected the label of filled pixels of masks, such as 255, "
            "or None."
        )
    # Checkpoints compare the text of an augmentation: without mask_fill it is that of versions that had none.
    return {} if mask_fill is None else {"mask_fill": int(mask_fill)}


def filling(name: str, masks: jax.Array, value: int) -> jax.Array:
    """Return the label of filled pixels in the dtype of the masks.

    Raises:
      LabelError: if the dtype cannot hold the value, and for targets of several channels.
    """
    held = np.asarray(value).astype(masks.dtype) == value
    if masks.shape[3] > 1 or not held:
        raise LabelError(
            f"augment.{name} got mask_fill={value} for masks of shape {masks.shape}, {masks.dtype}. Expected class "
            "numbers, (batch, height, width), of a dtype that holds the value, such as int32."
        )
    return jnp.asarray(value, masks.dtype)
