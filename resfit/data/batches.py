"""The one form in which data reaches the trainer."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np


class Batch(NamedTuple):
    """Some examples, on the host.

    Attributes:
      x: inputs: an array (batch, ...) or a pytree of such.
      y: labels likewise, or None.
      weight: (batch,) float32 or None, how much each example counts in the loss.
      mask: (batch,) booleans or None (all true): which rows are examples, and which only fill the shape.
      size: the number of examples.
    """

    x: Any
    y: Any
    weight: np.ndarray | None
    mask: np.ndarray | None
    size: int


class Geometry(NamedTuple):
    """How a data set is to be cut into batches.

    Attributes:
      batch_size: examples in a batch.
      seed: with the epoch it decides the order; None keeps the order of the data.
      pad: pad every batch to one shape and mask what was added, so that one executable serves all of them.
      min_batch: a last batch of fewer examples is dropped, with a warning (BatchNorm has no use for one example).
      drop_remainder: drop a short last batch of any size.
      shard: (index, count): the part of every batch that this process reads, of so many processes.
    """

    batch_size: int
    seed: int | None = None
    pad: bool = False
    min_batch: int = 1
    drop_remainder: bool = False
    shard: tuple[int, int] = (0, 1)


@runtime_checkable
class Batches(Protocol):
    """A data set in batches. An epoch's order is a pure function of (seed, epoch); a position is (epoch, batch)."""

    @property
    def steps(self) -> int | None:
        """Batches in an epoch, or None if nobody can know."""

    @property
    def examples(self) -> int | None:
        """Examples in an epoch, or None if nobody can know."""

    @property
    def labels(self) -> Any:
        """All labels as one array or pytree, for checks before training; None where they only come with the batches."""

    @property
    def report(self) -> Mapping[str, float]:
        """What the logs of an epoch should say about its data, such as the bad records left out. Usually nothing."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from batch `start` on."""


@runtime_checkable
class Described(Protocol):
    """Data, or a part of them, that can be told from others."""

    @property
    def description(self) -> Mapping[str, Any]:
        """What decides the batches, as far as it is known without reading: JSON values. A resumed run compares it."""


@runtime_checkable
class Positioned(Protocol):
    """Data that know where they stand, so that a resumed run need not read again what it has had."""

    def state_dict(self) -> Any:
        """The place after the last batch that was handed out."""

    def load_state_dict(self, state: Any) -> None:
        """Goes on from there with the next iteration."""


def description_of(data: Any) -> dict[str, Any]:
    """The description of data that have one."""
    return dict(data.description) if isinstance(data, Described) else {}


@runtime_checkable
class Named(Protocol):
    """Data that know the names of their classes, such as a `Source` with an attribute `classes`."""

    @property
    def classes(self) -> Sequence[str] | None:
        """The names of the classes by number; None if they have none."""


def classes_of(data: Any) -> tuple[str, ...] | None:
    """Return the class names of data by number, or None if the data have none."""
    names = data.classes if isinstance(data, Named) else None
    if not isinstance(names, Sequence) or isinstance(names, str):
        return None
    return tuple(names) if names and all(isinstance(name, str) for name in names) else None


class Source(Protocol):
    """Examples that can be had in any order: arrays, the images of a folder, a random-access data set on disk."""

    @property
    def labels(self) -> Any:
        """All labels, (examples,), where they cost nothing to know; else None."""

    @property
    def threads(self) -> int:
        """How many threads may read batches ahead at once; 0 where reading is no more than copying."""

    def __len__(self) -> int:
        """The number of examples."""

    def take(self, rows: slice | np.ndarray) -> tuple[Any, Any, np.ndarray | None]:
        """(x, y, weight) of these examples, in this order, stacked; several threads may call it at once."""


@runtime_checkable
class EpochSource(Protocol):
    """A `Source` that draws something anew in every epoch, such as random crops, before its examples are batches."""

    def for_epoch(self, seed: int | None, epoch: int) -> Source:
        """The examples of this epoch, a pure function of (seed, epoch, row); a seed of None says to draw nothing."""


@runtime_checkable
class Stream(Protocol):
    """Examples that come in an order of their own, such as the rows of many files."""

    def batches(self, geometry: Geometry) -> Batches:
        """The examples, cut."""
