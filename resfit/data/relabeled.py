"""Conversion of labels to the class numbers of another dataset, by class name."""

import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from resfit.data.batches import Batch, Batches, classes_of
from resfit.data.mapped import MappedBatches
from resfit.data.values import is_one_hot
from resfit.errors import DataError

_log = logging.getLogger("resfit")
_SHOWN = 10


def relabeled(batches: Batches, classes: Sequence[str] | None, what: str, ignore_index: int | None = None) -> Batches:
    """Return the batches with the class numbers of `classes`, for evaluation.

    Args:
      batches: the data; returned unchanged if they have no class names.
      classes: the class names of the training data by number, or None if they are unknown.
      what: the argument that holds the data, for error messages.
      ignore_index: the label of pixels without a class, which stays as it is; or None.

    Raises:
      DataError: if a class of the data is not among `classes`.
    """
    theirs = classes_of(batches)
    if theirs is None or classes is None or theirs == tuple(classes):
        return batches
    check_known(theirs, classes, what)
    table = [list(classes).index(name) for name in theirs]
    _log.info("The class numbers of %s are mapped by name to those of the training data.", what)
    return Relabeled(batches, table, tuple(classes), ignore_index)


def check_known(theirs: Sequence[str], classes: Sequence[str], what: str) -> None:
    """Raise if a name in `theirs` is not in `classes`, or a name occurs more than once."""
    unknown = [name for name in theirs if name not in classes]
    doubtful = [name for name in theirs if list(classes).count(name) > 1 or list(theirs).count(name) > 1]
    if unknown or doubtful:
        why = f"{_listed(unknown)} are not among them" if unknown else f"{_listed(doubtful)} occur more than once"
        raise DataError(
            f"{what} has the classes {_listed(theirs)}, but the network was trained on {_listed(classes)}: {why}. "
            "Expected names of training classes, in any order, each once. Rename or remove the other classes. If "
            "model.class_names are only for display, set model.class_names = None to compare class numbers instead."
        )


def _listed(names: Sequence[str]) -> str:
    more = f", ... {len(names)} in all" if len(names) > _SHOWN else ""
    return f"[{', '.join(map(repr, names[:_SHOWN]))}{more}]"


class Relabeled(MappedBatches):
    """Batches whose labels are mapped to other class numbers.

    Args:
      batches: batches whose labels are class numbers or have one column per class.
      table: old class number -> new class number.
      names: the class names by new number.
      ignore_index: a class number that stays as it is, or None.
    """

    def __init__(
        self, batches: Batches, table: Sequence[int], names: tuple[str, ...], ignore_index: int | None = None
    ) -> None:
        super().__init__(batches, {"classes": list(table)})
        self._table, self._names, self._ignore_index = np.asarray(table), names, ignore_index

    @property
    def classes(self) -> tuple[str, ...]:
        return self._names

    @property
    def labels(self) -> Any:
        return jax.tree.map(self._renumbered, self._batches.labels)

    def _map(self, batch: Batch) -> Batch:
        return batch._replace(y=jax.tree.map(self._renumbered, batch.y))

    def _renumbered(self, y: Any) -> np.ndarray:
        y = np.asarray(y)
        if y.ndim > 1 and y.shape[-1] == len(self._table) > 1 and (y.ndim == 2 or is_one_hot(y)):
            columns = np.zeros((*y.shape[:-1], len(self._names)), y.dtype)
            columns[..., self._table] = y
            return columns
        if y.dtype.kind not in "biu":
            raise DataError(
                f"Got labels of dtype {y.dtype} and shape {y.shape} for the classes {_listed(self._names)}. Expected "
                "class numbers, or one column per class."
            )
        numbers = y.astype(np.int64)
        ignored = np.zeros(y.shape, bool) if self._ignore_index is None else numbers == self._ignore_index
        numbers = np.where(ignored, -1, numbers)
        if numbers.max(initial=0) >= len(self._table):
            raise DataError(
                f"Got the class number {numbers.max()}, but the data have names for {len(self._table)} classes. "
                f"Expected numbers from 0 to {len(self._table) - 1}. Correct the labels or the class names."
            )
        # Negative numbers, such as -1 for an unknown class, have no name; the losses raise for them.
        renumbered = np.where(numbers >= 0, self._table[np.maximum(numbers, 0)], y)
        # At least 32 bits, because the new numbers may not fit into the 8 bits of the old ones.
        mapped: np.ndarray = renumbered.astype(np.int64 if y.dtype.itemsize > 4 else np.int32)
        return mapped
