"""The parts of the data in a cross-validation."""

from typing import Any

import jax
import numpy as np

from resfit._utils.checks import is_int
from resfit.data.choose import in_memory
from resfit.data.sources.arrays import as_arrays
from resfit.errors import DataError


def folded(x: Any, y: Any, sample_weight: Any, folds: int, members: int) -> list[dict[str, Any]]:
    """Return the data arguments of each member's `fit`: member i is validated on part i, and trained on the others.

    The parts are random, the same in every call, and have equal shares of each class.

    Args:
      x: arrays (examples, ...).
      y: labels, one entry for each example.
      sample_weight: (examples,) or None.
      folds: the number of parts.
      members: a multiple of `folds`; member `folds` begins with the first part again.

    Raises:
      DataError: for data that are not arrays, and another number of folds.

    Example:
      >>> parts = folded(np.zeros((4, 2)), np.array([0, 0, 1, 1]), None, folds=2, members=2)
      >>> [np.sort(part["y"]).tolist() for part in parts]
      [[0, 1], [0, 1]]
    """
    if not is_int(folds, 2) or members % folds:
        raise DataError(
            f"Got folds={folds!r} for {members} members. Expected 2 or more, and a divisor of the number of members: "
            "one member for each fold, or several with different seeds."
        )
    if not in_memory(x):
        raise DataError(
            f"Got folds={folds} for a {type(x).__name__}. Expected arrays. Split the data, and pass the parts as "
            "x=resfit.Each([...]), y=resfit.Each([...]), validation_data=resfit.Each([...])."
        )
    x, y, weight = as_arrays(x, y, sample_weight)
    part = _parts(y, len(jax.tree.leaves(x)[0]), folds)
    found = []
    for i in range(members):
        train, held_out = np.flatnonzero(part != i % folds), np.flatnonzero(part == i % folds)
        if not len(held_out) or not len(train):
            raise DataError(f"Got folds={folds} for {len(part)} examples. Expected at least one example for each fold.")
        rows = [jax.tree.map(lambda leaf, rows=rows: leaf[rows], (x, y, weight)) for rows in (train, held_out)]
        (own_x, own_y, own_weight), others = rows
        validation = others[:2] if weight is None else others
        found.append({"x": own_x, "y": own_y, "sample_weight": own_weight, "validation_data": validation})
    return found


def _parts(y: Any, examples: int, folds: int) -> np.ndarray:
    """Return the number of the part of each example."""
    order = np.random.default_rng(0).permutation(examples)
    labels = y if isinstance(y, np.ndarray) else None
    if labels is not None and labels.ndim == 2 and np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all():
        labels = labels.argmax(1)
    if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iub":
        order = order[np.argsort(labels[order], kind="stable")]
    part = np.empty(examples, int)
    part[order] = np.arange(examples) % folds
    return part
