"""Any iterable of batches: lists, loaders, generators."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax

from resfit.data.arrays import as_arrays
from resfit.data.batches import Batch
from resfit.errors import DataError


class IterableBatches:
    """Batches that somebody else makes: `(x,)`, `(x, y)` or `(x, y, sample_weight)` tuples, or bare `x`.

    The order is the iterable's own. An object that can be iterated again (a list, a loader) gives one pass per epoch;
    an iterator gives what it has left.

    Args:
      source: the iterable.

    Raises:
      DataError: while iterating: if it yields nothing, or something that is no batch.

    Example:
      >>> import numpy as np
      >>> batches = IterableBatches([(np.zeros((2, 4)), np.array([0, 1]))])
      >>> batches.steps, next(batches.epoch(0)).size
      (1, 2)
    """

    def __init__(self, source: Iterable[Any]) -> None:
        self._source = source
        self._used = False
        length = getattr(source, "__len__", None)
        self.steps: int | None = length() if length is not None else None
        self.examples: int | None = None
        self.labels: Any = None
        if self.steps == 0:
            raise DataError(f"The {type(source).__name__} holds no batches. Expected at least one.")

    def epoch(self, epoch: int) -> Iterator[Batch]:
        name = type(self._source).__name__
        empty = True
        for item in self._source:
            empty, self._used = False, True
            yield as_batch(item)
        if empty and self._used:
            raise DataError(
                f"The {name} is an iterator, and all its batches have been used. Pass something that can be iterated "
                "again (a list, a loader, an object with __iter__), or an iterator with enough batches for all epochs."
            )
        if empty:
            raise DataError(f"The {name} yielded no batch in epoch {epoch}. Expected at least one.")


def as_batch(item: Any) -> Batch:
    """One item of an iterable as a batch."""
    if isinstance(item, list):
        raise DataError(
            f"Expected batches as tuples (x, y) or (x, y, sample_weight), got a list of {len(item)}, which does not "
            "say what is what. Make it a tuple: (tuple(batch) for batch in loader)."
        )
    parts = item if isinstance(item, tuple) else (item,)
    if not 1 <= len(parts) <= 3:
        raise DataError(f"Expected batches (x, y) or (x, y, sample_weight), got a tuple of {len(parts)} entries.")
    x, y, weight = as_arrays(*parts)
    return Batch(x, y, weight, None, len(jax.tree.leaves(x)[0]))
