"""Adapters for PyTorch datasets: `Dataset`, whose examples have numbers, and `IterableDataset`."""

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from resfit.data.batches import Batches, Geometry
from resfit.data.sources.class_names import names_of
from resfit.data.sources.iterables import IterableBatches, as_batch
from resfit.data.sources.torch_objects import collated, is_torch, seed_torch, seeded
from resfit.errors import DataError

_log = logging.getLogger("resfit")


def is_torch_dataset(x: Any) -> bool:
    """Return True for a `torch.utils.data.Dataset`, recognized by name."""
    return is_torch(x, "Dataset")


def from_torch(dataset: Any) -> "TorchDataset | TorchStream":
    """Convert a dataset of PyTorch to a `Source`, or to a `Stream` if its examples have no numbers."""
    return TorchStream(dataset) if is_torch(dataset, "IterableDataset") else TorchDataset(dataset)


@dataclasses.dataclass(frozen=True, eq=False)
class TorchDataset:
    """A `Source` of the examples of a map-style `Dataset`.

    One thread reads ahead. Before each batch, PyTorch's random numbers are seeded by (seed, epoch, batch), so that
    random transforms are the same when a run resumes.

    Attributes:
      dataset: the dataset, with a length.
      key: (seed, epoch); None to leave PyTorch's random numbers alone.
    """

    dataset: Any
    key: tuple[int, int] | None = None

    labels = None
    threads = 1
    checked = True

    def __post_init__(self) -> None:
        if not hasattr(self.dataset, "__len__"):
            raise DataError(
                f"The {type(self.dataset).__name__} has no length. Expected __len__ and __getitem__(number), or an "
                "IterableDataset. Implement __len__, or pass a DataLoader with a sampler."
            )

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def classes(self) -> tuple[str, ...] | None:
        return names_of(self.dataset)

    @property
    def description(self) -> Mapping[str, Any]:
        return {"dataset": type(self.dataset).__name__}

    def for_epoch(self, seed: int | None, epoch: int) -> "TorchDataset":
        """Return the same examples with the random transforms of one epoch."""
        return self if seed is None else dataclasses.replace(self, key=(seed, epoch))

    def take(self, rows: slice | np.ndarray) -> tuple[Any, Any, np.ndarray | None]:
        numbers = range(*rows.indices(len(self))) if isinstance(rows, slice) else rows.tolist()
        if self.key is not None:
            seed_torch((*self.key, *numbers))
        several = getattr(self.dataset, "__getitems__", None)
        examples = [self.dataset[number] for number in numbers] if several is None else several(list(numbers))
        if len(examples) != len(numbers):
            raise DataError(
                f"{type(self.dataset).__name__}.__getitems__ returned {len(examples)} examples for {len(numbers)} "
                "numbers. Expected one example for each number. Return all requested examples."
            )
        batch = as_batch(collated(examples, type(self.dataset).__name__), self.dataset)
        return batch.x, batch.y, batch.weight


class TorchStream:
    """An `IterableDataset` as a `Stream`, in batches of consecutive examples.

    Args:
      dataset: the dataset.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def batches(self, geometry: Geometry) -> Batches:
        if geometry.shard[1] > 1:
            raise DataError(
                f"x is a {type(self._dataset).__name__}, an IterableDataset, but {geometry.shard[1]} processes train "
                "together, and each would read all of it. Expected the part of this process. Pass a function that "
                "returns batches of different examples in each process: lambda: iter(DataLoader(part, batch_size=32))."
            )
        return IterableBatches(_Batched(self._dataset, geometry))


class _Batched:
    """The batches of an `IterableDataset`, a new pass for every iteration."""

    def __init__(self, dataset: Any, geometry: Geometry) -> None:
        self._dataset, self._geometry = dataset, geometry
        self._name = type(dataset).__name__
        self._epoch = 0
        self.classes = names_of(dataset)

    def __len__(self) -> int:
        n, size = len(self._dataset), self._geometry.batch_size  # TypeError if the length is unknown
        return n // size + (n % size > 0 and not self._drops(n % size, n > size))

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        if hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        geometry, later = self._geometry, False
        examples = iter(self._dataset)
        if geometry.seed is not None:
            examples = seeded(examples, (geometry.seed, self._epoch))
        while group := list(itertools.islice(examples, geometry.batch_size)):
            if len(group) < geometry.batch_size and self._drops(len(group), later):
                return
            later = True
            yield collated(group, self._name)

    def _drops(self, rest: int, later: bool) -> bool:
        """Return True if a partial batch of `rest` examples is dropped; the only batch stays."""
        return later and (self._geometry.drop_remainder or rest < self._geometry.min_batch)
