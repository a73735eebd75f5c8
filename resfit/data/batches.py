"""The contracts of the input pipeline: `Batch`, `Batches`, `Source` and `Stream`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from resfit.errors import DataError


class Batch(NamedTuple):
    """A batch of examples on the host.

    Attributes:
      x: inputs: an array (batch, ...) or a pytree of such arrays.
      y: labels in the same form, or None.
      weight: (batch,) float32, the weight of each example in the loss; or None.
      mask: (batch,) booleans, True for examples and False for padding; None if all rows are examples.
      size: the number of examples.
      origin: (batch, 3) int32: shard, row in the shard, and number of the pass over the data of each row; or None. Data
        without shards have shard 0.
    """

    x: Any
    y: Any
    weight: np.ndarray | None
    mask: np.ndarray | None
    size: int
    origin: np.ndarray | None = None


class Geometry(NamedTuple):
    """The parameters by which a dataset is cut into batches.

    Attributes:
      batch_size: examples per batch.
      seed: determines the order together with the epoch; None keeps the order of the data.
      pad: pad every batch to one shape and mask the padding, so that one executable serves all batches.
      min_batch: a last batch with fewer examples is dropped with a warning (BatchNorm needs more than one example).
      drop_remainder: drop a partial last batch of any size.
      shard: (index, count): this process reads part `index` of `count` of every batch.
      numbered: give batches an `origin`, if the data know it.
    """

    batch_size: int
    seed: int | None = None
    pad: bool = False
    min_batch: int = 1
    drop_remainder: bool = False
    shard: tuple[int, int] = (0, 1)
    numbered: bool = False


@runtime_checkable
class Batches(Protocol):
    """A dataset in batches. An epoch's order is a pure function of (seed, epoch); a position is (epoch, batch)."""

    @property
    def steps(self) -> int | None:
        """Batches per epoch, or None if the number is unknown."""

    @property
    def examples(self) -> int | None:
        """Examples per epoch, or None if the number is unknown."""

    @property
    def labels(self) -> Any:
        """All labels as one array or pytree, for checks before training; None if only the batches contain them."""

    @property
    def report(self) -> Mapping[str, float]:
        """Values about the data for an epoch's logs, such as the number of skipped records. Usually empty."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of one epoch, starting at batch `start`."""


@runtime_checkable
class Described(Protocol):
    """Data with a description that distinguishes them from other data."""

    @property
    def description(self) -> Mapping[str, Any]:
        """JSON values that determine the batches and are known without reading. A resumed run compares them."""


@runtime_checkable
class Positioned(Protocol):
    """Data that save and restore their own position, so that a resumed run does not read earlier batches again."""

    def state_dict(self) -> Any:
        """Return the position after the last batch that was handed out."""

    def load_state_dict(self, state: Any) -> None:
        """Continue from this position in the next iteration."""


def description_of(data: Any) -> dict[str, Any]:
    """Return the description of `Described` data, else an empty dict."""
    return dict(data.description) if isinstance(data, Described) else {}


@runtime_checkable
class EpochAware(Protocol):
    """Data with methods that are called around every epoch, whatever its number of batches."""

    def begin_epoch(self, number: int) -> None:
        """Prepare an epoch whose first batch is of this pass over the data, `number` of `epoch(number)`."""

    def end_epoch(self) -> None:
        """Note that all batches of the epoch were taken."""


def whole_epoch(batches: Batches, number: int, items: Iterator[Batch]) -> Iterator[Batch]:
    """Iterate over the items of an epoch of `batches`, between the two methods of `EpochAware` data.

    The last one is not called if the epoch is not read to its end.
    """
    aware = batches if isinstance(batches, EpochAware) else None
    if aware is not None:
        aware.begin_epoch(number)
    yield from items
    if aware is not None:
        aware.end_epoch()


def check_end(batches: Batches, steps: int | None, argument: str) -> None:
    """Raise if a pass over data never ends, and nothing limits the number of batches.

    Args:
      batches: the data; endless if they have a true attribute `endless`.
      steps: the number of batches to read, or None for one pass.
      argument: the name of the argument for that number.

    Raises:
      DataError: if the data are endless and `steps` is None.
    """
    if steps is None and getattr(batches, "endless", False):
        raise DataError(
            f"The dataset has no length, and got {argument}=None: one pass over the data would never end. Expected a "
            f"number of batches. Pass {argument}, or give the dataset a __len__ that returns its number of batches."
        )


@runtime_checkable
class Named(Protocol):
    """Data with class names, such as a `Source` with an attribute `classes`."""

    @property
    def classes(self) -> Sequence[str] | None:
        """The class names by number, or None if the classes have no names."""


def classes_of(data: Any) -> tuple[str, ...] | None:
    """Return the class names of `data` by number, or None if the classes have no names."""
    names = data.classes if isinstance(data, Named) else None
    if not isinstance(names, Sequence) or isinstance(names, str):
        return None
    return tuple(names) if names and all(isinstance(name, str) for name in names) else None


class Source(Protocol):
    """Examples with random access: arrays, the images of a folder, a random-access dataset on disk."""

    @property
    def labels(self) -> Any:
        """All labels, (examples,), if they are known without reading the examples; else None."""

    @property
    def threads(self) -> int:
        """The number of threads that read batches ahead; 0 if reading is only a copy in memory."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def take(self, rows: slice | np.ndarray) -> tuple[Any, Any, np.ndarray | None]:
        """Return these examples in this order, stacked, as (x, y, weight). Several threads may call it at once."""


@runtime_checkable
class EpochSource(Protocol):
    """A `Source` with random values per epoch, such as random crops, drawn before examples are stacked."""

    def for_epoch(self, seed: int | None, epoch: int) -> Source:
        """Return the examples of this epoch, a pure function of (seed, epoch, row); seed None draws nothing."""


@runtime_checkable
class Stream(Protocol):
    """Examples with sequential access only, such as the rows of many files."""

    def batches(self, geometry: Geometry) -> Batches:
        """Return the examples in batches."""
