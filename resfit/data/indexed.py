"""Batches of examples with random access."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from resfit._utils.checks import positive_int
from resfit.data.batches import Batch, EpochSource, Geometry, Source, classes_of, description_of
from resfit.data.streaming.ahead import in_order
from resfit.data.values import check_values
from resfit.errors import DataError

_log = logging.getLogger("resfit")


class IndexedBatches:
    """Batches of a `Source`: shuffled by (seed, epoch), with a partial last batch that is padded for evaluation.

    An epoch can start at any batch at no cost.

    Args:
      source: the examples.
      geometry: how to cut the examples into batches.

    Raises:
      DataError: if there are no examples, or `geometry` drops all of them.

    Example:
      >>> from resfit.data.sources.arrays import ArraySource
      >>> batches = IndexedBatches(ArraySource(np.arange(5.0), np.arange(5)), Geometry(batch_size=2, seed=0))
      >>> batches.steps, [batch.size for batch in batches.epoch(0)], [batch.size for batch in batches.epoch(0, start=1)]
      (3, [2, 2, 1], [2, 1])
    """

    random_access = True  # a batch depends on its position alone, so a thread can read ahead

    def __init__(self, source: Source, geometry: Geometry) -> None:
        n, size = len(source), geometry.batch_size
        if not n:
            raise DataError(f"The {type(source).__name__} holds no examples. Expected at least one.")
        positive_int("batch_size", size, DataError)
        self._source = source
        self._geometry = geometry
        self._n = n
        # A dataset smaller than a batch is padded to the next power of two only: a handful of executables.
        self._batch = int(size) if n >= size else min(int(size), 1 << (n - 1).bit_length())
        full, rest = divmod(n, self._batch)
        if geometry.drop_remainder and n < size:
            raise DataError(
                f"drop_remainder=True with {n} examples and batch_size={size} leaves no batch. Leave drop_remainder "
                "out, or choose a smaller batch_size."
            )
        dropped = rest if full and rest and (geometry.drop_remainder or rest < geometry.min_batch) else 0
        if dropped and not geometry.drop_remainder:
            _log.warning(
                "The last batch of every epoch has %d example(s), too few for BatchNorm, and is dropped. "
                "Another batch_size avoids this: %d examples, batch_size=%d.", rest, n, size,
            )  # fmt: skip
        self.examples = n - dropped
        self.steps = -(-self.examples // self._batch)
        self.report: Mapping[str, float] = {}
        index, count = geometry.shard
        self._part = index * self._batch // count, (index + 1) * self._batch // count  # of a whole batch
        # All whole batches share it.
        self._mask = np.ones(self._part[1] - self._part[0], bool) if geometry.pad else None
        if self._mask is not None:
            self._mask.flags.writeable = False

    @property
    def source(self) -> Source:
        return self._source

    @property
    def labels(self) -> Any:
        return self._source.labels

    @property
    def classes(self) -> tuple[str, ...] | None:
        return classes_of(self._source)

    @property
    def description(self) -> Mapping[str, Any]:
        return {"source": type(self._source).__name__} | description_of(self._source)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        seed = self._geometry.seed
        order = None if seed is None else np.random.default_rng((seed, epoch)).permutation(self._n)
        source = self._source
        if isinstance(source, EpochSource):
            source = source.for_epoch(seed, epoch)
        firsts = range(start * self._batch, self.examples, self._batch)
        return in_order(lambda first: self._rows(source, order, first, epoch), firsts, source.threads)

    def _rows(self, source: Source, order: np.ndarray | None, first: int, epoch: int) -> Batch:
        (low, high), size, mask = self._part, self._batch, self._mask
        places: slice | np.ndarray = slice(first + low, first + high)
        if first + size > self.examples:
            size = self.examples - first
            if mask is None:
                index, count = self._geometry.shard
                low, high = index * size // count, (index + 1) * size // count
                places = slice(first + low, first + high)
            else:
                # Padding repeats the last example, because a network that handles real rows handles a copy of one.
                mask = np.arange(low, high) < size
                places = first + np.minimum(np.arange(low, high), size - 1)
        rows = places if order is None else order[places]
        x, y, weight = source.take(rows) if high > low else jax.tree.map(lambda a: a[:0], source.take(slice(0, 1)))
        if not getattr(self._source, "checked", False):
            self._check(x, y, weight, high - low)
        origin = self._origin(rows, epoch) if self._geometry.numbered else None
        return Batch(x, y, weight, mask, size, origin)

    def _origin(self, rows: slice | np.ndarray, epoch: int) -> np.ndarray:
        numbers = np.arange(self._n)[rows] if isinstance(rows, slice) else rows
        return np.stack([0 * numbers, numbers, np.full_like(numbers, epoch)], axis=1).astype(np.int32)

    def _check(self, x: Any, y: Any, weight: Any, rows: int) -> None:
        """Check what a source returned for this many rows."""
        lengths = list(map(len, jax.tree.leaves((x, y, weight))))
        if lengths.count(rows) < len(lengths):
            raise DataError(
                f"The {type(self._source).__name__} returned arrays of lengths {lengths} for {rows} requested "
                f"examples. Expected {rows} entries in every array. Return all requested examples in take()."
            )
        check_values(x, y)
