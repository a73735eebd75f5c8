"""The error for single examples in place of batches."""

from typing import Any

import jax
import numpy as np

from resfit.data.decode import is_picture
from resfit.data.sources.torch_objects import is_torch
from resfit.data.values import is_sparse
from resfit.errors import DataError

_GENERAL = (
    "If they fit in memory, stack them: x, y = map(np.stack, zip(*examples)), and fit(x, y, batch_size=32). Otherwise "
    "yield (np.stack(images), np.stack(labels)) of 32 examples at a time."
)
_REMEDIES = {
    "tensorflow": "Pass dataset.batch(32).",
    "torch": "Pass DataLoader(dataset, batch_size=32), or the dataset itself: fit(dataset, batch_size=32).",
    "webdataset": "Pass dataset.batched(32).",
    "keras": "Return the examples of a batch from __getitem__: np.stack(images), np.stack(labels).",
}


def check_batched(parts: tuple[Any, ...], source: Any) -> None:
    """Raise if a batch is one example: an image without the axis of the batch, or with a single number as its label.

    Args:
      parts: (x,), (x, y) or (x, y, sample_weight).
      source: the data that yielded the batch, which determines the remedy.

    Raises:
      DataError: if the batch is one example; the message names the call that makes batches.
    """
    if not _is_single(parts, source):
        return
    found = ", ".join(f"{type(leaf).__name__}{_shape(leaf)}" for leaf in jax.tree.leaves(parts))
    packages = (kind.__module__.partition(".")[0] for kind in type(source).__mro__)
    remedy = next((_REMEDIES[package] for package in packages if package in _REMEDIES), _GENERAL)
    raise DataError(
        f"The {type(source).__name__} yielded a single example ({found}). Expected batches, with the number of "
        f"examples as the first dimension of every array. {remedy}"
    )


def _is_single(parts: tuple[Any, ...], source: Any) -> bool:
    if any(map(is_sparse, jax.tree.leaves(parts, is_leaf=is_sparse))):
        return False  # the shape of a sparse array is not that of its entries; `as_arrays` raises for it
    images, labels = _arrays(parts[0]), _arrays(parts[1:])
    if is_picture(parts[0]) or any(np.ndim(leaf) == 0 for leaf in labels):
        return True
    shapes = [np.shape(leaf) for leaf in images]
    if is_torch(source, "DataLoader") and getattr(source, "batch_sampler", source) is None and 3 in map(len, shapes):
        return True
    rows = {np.shape(leaf)[0] for leaf in labels}
    # An image with a row of numbers as its label, such as one-hot. Labels of as many entries as the image has rows
    # cannot be told from a batch; the network raises for them.
    return any(len(shape) == 3 and {shape[0], shape[2]} & {1, 3, 4} and rows - {shape[0]} for shape in shapes)


def _arrays(tree: Any) -> list[Any]:
    """Return the arrays and numbers of a tree; a list of numbers is one array."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, list))
    return [leaf for leaf in leaves if hasattr(leaf, "shape") or isinstance(leaf, int | float)]


def _shape(leaf: Any) -> str:
    return f" {tuple(leaf.shape)}" if hasattr(leaf, "shape") else ""
