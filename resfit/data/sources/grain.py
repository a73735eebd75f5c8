"""Grain's data sets and loaders: MapDataset, IterDataset and DataLoader, batched by Grain."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from resfit.data.batches import Batch, Batches
from resfit.data.cores import cores
from resfit.data.sources.iterables import as_batch
from resfit.data.streaming.ahead import in_order
from resfit.errors import DataError

# Nobody has as many batches: a length beyond is that of a data set that repeats without end.
_ENDLESS = 1 << 40


def is_grain(x: Any) -> bool:
    """Whether x is an object of Grain's, or of a class that somebody made of one of them."""
    return any(cls.__module__.partition(".")[0] == "grain" for cls in type(x).__mro__)


def from_grain(x: Any) -> Batches | Iterable[Any]:
    """Something of Grain's as what `as_batches` goes on with.

    Args:
      x: a MapDataset, an IterDataset, a DataLoader, or an iterator of one of them.
    """
    if hasattr(x, "__getitem__"):
        return GrainBatches(x)
    if not isinstance(x, Iterator):
        return GrainIterable(x)
    return map(_batched, x) if _state_of(x) is None else GrainIterator(x)


class GrainBatches:
    """The batches of a `grain.MapDataset`: read by threads, from any batch on at no cost.

    The order is Grain's own. One pass is one epoch; the next one asks for the elements that follow, as `repeat` would,
    so that a data set that is shuffled is shuffled anew, and random transformations draw anew.

    Args:
      data: a MapDataset whose elements are batches: (x, y) or (x, y, sample_weight) tuples, or a dict of an image and
        its label.

    Raises:
      DataError: if it is empty; while iterating, if an element is no batch, or was filtered out.

    Example:
      >>> import grain
      >>> examples = [(np.full((2, 2, 1), i), i) for i in range(5)]
      >>> batches = GrainBatches(grain.MapDataset.source(examples).seed(0).shuffle().batch(2))
      >>> batches.steps, [batch.size for batch in batches.epoch(0)], [batch.size for batch in batches.epoch(1, start=1)]
      (3, [2, 2, 1], [2, 1])
    """

    examples = None
    labels = None
    report: Mapping[str, float] = {}

    def __init__(self, data: Any) -> None:
        self._data = data
        self._length = len(data)
        if not self._length:
            raise DataError(f"The {type(data).__name__} holds no batches. Expected at least one.")
        self.steps = None if self._length >= _ENDLESS else self._length
        self.description: Mapping[str, Any] = {"batches": self.steps}

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        if self.steps is None:
            return in_order(self._batch, itertools.count(start), cores())
        first = epoch * self._length
        return in_order(self._batch, range(first + start, first + self._length), cores())

    def _batch(self, index: int) -> Batch:
        element = self._data[index]
        if element is None:
            raise DataError(
                f"Element {index} of the {type(self._data).__name__} was filtered out. Expected a data set whose "
                "length is that of what it yields: filter after .to_iter_dataset(), and before .batch(64)."
            )
        return as_batch(_batched(element))


class GrainIterable:
    """The elements of a `grain.IterDataset` or `grain.DataLoader`, looked at for being batches.

    Every epoch is one more pass, in the same order unless the data set itself changes it: shuffle and repeat before
    `.to_iter_dataset()`, and say `steps_per_epoch`, for another order in every epoch. A run that goes on inside a pass
    begins where Grain's iterator stood. That of a `DataLoader` tells its data source by `repr`: where that is Python's
    own, with an address in it, the pass is read again and skipped.

    Args:
      data: what is iterated.

    Raises:
      DataError: while iterating: if an element is no batch, or Grain's worker processes cannot start.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        self._data = data
        self._iterator: Any = None  # of the pass that is going on
        self._state: Any = None  # that the next pass begins in

    def __iter__(self) -> Iterator[Any]:
        from absl import flags

        try:
            self._iterator = iter(self._data)
            state, self._state = self._state, None
            if state is not None:
                _set_state(self._iterator, state)
            yield from map(_batched, self._iterator)
            self._iterator = None
        except flags.UnparsedFlagAccessError as error:
            raise DataError(
                f"Grain's worker processes need the flags of absl, and they were not parsed: {error} Expected "
                "absl.flags.FLAGS.mark_as_parsed() before fit, or a program run by absl.app.run."
            ) from error

    def state_dict(self) -> Any:
        """Where Grain's iterator stands, in a form of Grain's; None between two passes, or if no one can tell."""
        return _state_of(self._iterator)

    def load_state_dict(self, state: Any) -> None:
        self._state = state


class GrainIterator(Iterator[Any]):
    """An iterator of a `grain.IterDataset` or `grain.DataLoader`, whose elements are looked at for being batches.

    Args:
      iterator: of Grain's.

    Raises:
      DataError: while iterating: if an element is no batch.
    """

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator

    def __next__(self) -> Any:
        return _batched(next(self._iterator))

    def state_dict(self) -> Any:
        return _state_of(self._iterator)

    def load_state_dict(self, state: Any) -> None:
        _set_state(self._iterator, state)


def _state_of(iterator: Any) -> Any:
    state = iterator.get_state() if hasattr(iterator, "get_state") else None
    # A DataLoader takes no state that names another data source, as it does where the name holds an address.
    return None if isinstance(state, bytes) and b" at 0x" in state else state


def _set_state(iterator: Any, state: Any) -> None:
    try:
        iterator.set_state(state)
    except ValueError as error:
        raise DataError(
            f"Grain cannot go on from the state of the saved run: {error} Expected the same sampler and data source."
        ) from error


def _batched(element: Any) -> Any:
    """The element itself, if all of its arrays begin with the same number of examples."""
    leaves = jax.tree.leaves(element)
    shapes = [np.shape(leaf) for leaf in leaves]
    if not shapes or () in shapes or len({shape[0] for shape in shapes}) > 1:
        raise DataError(
            f"An element of the Grain data has arrays of shapes {', '.join(map(str, shapes))}, which is one example "
            "and not a batch. Expected arrays that all begin with the number of examples: put .batch(64) at the end."
        )
    return element
