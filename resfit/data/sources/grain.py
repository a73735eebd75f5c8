"""Adapters for Grain: MapDataset, IterDataset and DataLoader, batched by Grain."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from resfit.data.batches import Batch, Geometry
from resfit.data.cores import cores
from resfit.data.sources.iterables import as_batch
from resfit.data.streaming.ahead import in_order
from resfit.data.streaming.shares import part
from resfit.errors import DataError

# A longer dataset repeats without end: Grain reports sys.maxsize as its length.
_ENDLESS = 1 << 40


def is_grain(x: Any) -> bool:
    """Return True if the class of `x` is defined in Grain or derived from such a class."""
    return any(cls.__module__.partition(".")[0] == "grain" for cls in type(x).__mro__)


def from_grain(x: Any) -> "GrainMap | Iterable[Any]":
    """Convert a Grain object to a `Stream` or an iterable of batches.

    Args:
      x: a MapDataset, an IterDataset, a DataLoader, or an iterator over one of them.
    """
    if hasattr(x, "__getitem__"):
        return GrainMap(x)
    if not isinstance(x, Iterator):
        return GrainIterable(x)
    return map(_batched, x) if _state_of(x) is None else GrainIterator(x)


class GrainMap:
    """A `grain.MapDataset` of batches as a `Stream`: each process reads its part of every batch.

    Args:
      data: the dataset, the same in every process.
    """

    def __init__(self, data: Any) -> None:
        self._data = data

    def batches(self, geometry: Geometry) -> "GrainBatches":
        return GrainBatches(self._data, geometry.shard)


class GrainBatches:
    """The batches of a `grain.MapDataset`, read by threads from any batch at no cost.

    Grain determines the order. One pass is one epoch. The next epoch reads the elements after the last one, as `repeat`
    does, so shuffling and random transformations draw new values in every epoch.

    Args:
      data: a MapDataset whose elements are batches: (x, y) or (x, y, sample_weight) tuples, or dicts of an image and
        its label.
      shard: (index, count): this process keeps part `index` of `count` of every batch.

    Raises:
      DataError: if `data` is empty; during iteration, if an element is not a batch or was filtered out.

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

    def __init__(self, data: Any, shard: tuple[int, int] = (0, 1)) -> None:
        self._data, self._shard = data, shard
        self._length = len(data)
        if not self._length:
            raise DataError(f"The {type(data).__name__} has no batches. Expected at least one.")
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
                f"Element {index} of the {type(self._data).__name__} was filtered out. Expected as many elements as "
                "the length of the dataset. Filter after .to_iter_dataset() and before .batch(64)."
            )
        batch = as_batch(_batched(element), self._data)
        low, high = part(batch.size, self._shard)
        x, y, weight = jax.tree.map(lambda array: array[low:high], (batch.x, batch.y, batch.weight))
        return batch._replace(x=x, y=y, weight=weight)


class GrainIterable:
    """The elements of a `grain.IterDataset` or `grain.DataLoader`, checked to be batches.

    Every epoch is one pass, in the order of the dataset. For another order in every epoch, shuffle and repeat before
    `.to_iter_dataset()` and set `steps_per_epoch`. A run that resumes inside a pass starts from the state of Grain's
    iterator. The state of a `DataLoader` contains the `repr` of its data source; if that `repr` contains a memory
    address, the run reads the pass again and skips batches.

    Args:
      data: the IterDataset or DataLoader.

    Raises:
      DataError: during iteration, if an element is not a batch or Grain's worker processes cannot start.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        self._data = data
        self._iterator: Any = None  # of the current pass
        self._state: Any = None  # the initial state of the next pass

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
                f"Grain's worker processes need absl flags, which were not parsed: {error} Call "
                "absl.flags.FLAGS.mark_as_parsed() before fit, or start the program with absl.app.run."
            ) from error

    def state_dict(self) -> Any:
        """Return the state of Grain's iterator; None between two passes or if the state is not reusable."""
        return _state_of(self._iterator)

    def load_state_dict(self, state: Any) -> None:
        self._state = state


class GrainIterator(Iterator[Any]):
    """An iterator over a `grain.IterDataset` or `grain.DataLoader` that checks that elements are batches.

    Args:
      iterator: the Grain iterator.

    Raises:
      DataError: during iteration, if an element is not a batch.
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
    # A DataLoader rejects a state with another repr of the data source, and an address changes in every process.
    return None if isinstance(state, bytes) and b" at 0x" in state else state


def _set_state(iterator: Any, state: Any) -> None:
    try:
        iterator.set_state(state)
    except ValueError as error:
        raise DataError(
            f"Grain rejected the saved state: {error} Expected the sampler and data source of the saved run. Resume "
            "with the same data."
        ) from error


def _batched(element: Any) -> Any:
    """Return the element; raise if its arrays do not have the same first dimension."""
    leaves = jax.tree.leaves(element)
    shapes = [np.shape(leaf) for leaf in leaves]
    if not shapes or () in shapes or len({shape[0] for shape in shapes}) > 1:
        raise DataError(
            f"An element of the Grain data has arrays of shapes {', '.join(map(str, shapes))}, which is not a batch. "
            "Expected the number of examples as the first dimension of all arrays. Put .batch(64) at the end."
        )
    return element
