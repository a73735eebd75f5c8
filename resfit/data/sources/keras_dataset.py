"""Adapters for Keras datasets: `PyDataset`, the older `Sequence`, and their subclasses."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from resfit.data.batches import Batch, Geometry
from resfit.data.sources.class_names import names_of
from resfit.data.sources.iterables import as_batch
from resfit.data.streaming.ahead import in_order
from resfit.errors import DataError

_log = logging.getLogger("resfit")

_HOOKS = ("on_epoch_begin", "on_epoch_end")


def is_keras_dataset(x: Any) -> bool:
    """Return True for a `keras.utils.PyDataset` or `Sequence`, recognized by name: Keras is not imported."""
    return _base(x) is not None


def _length(dataset: Any) -> int | None:
    """Return the number of batches, or None for an endless dataset."""
    try:
        if hasattr(dataset, "__len__"):
            batches = type(dataset).__len__(dataset)  # len() raises the same error for no length and for 5.0
        else:
            batches = dataset.num_batches if hasattr(type(dataset), "num_batches") else None
    except (TypeError, NotImplementedError):
        return None
    if batches is not None and not isinstance(batches, int | np.integer):
        raise DataError(
            f"The length of the {type(dataset).__name__} is {batches!r}, a {type(batches).__name__}. Expected the "
            "number of batches as an integer. Return int(np.ceil(examples / batch_size))."
        )
    return None if batches is None else int(batches)


def _base(x: Any) -> type | None:
    for kind in type(x).__mro__:
        if kind.__name__ in ("PyDataset", "Sequence") and kind.__module__.partition(".")[0] in _PACKAGES:
            return kind
    return None


_PACKAGES = ("keras", "tf_keras", "tensorflow")


class KerasDataset:
    """A Keras dataset as a `Stream`.

    Args:
      dataset: an object with `__getitem__(i)` for batch i, and usually a length.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def batches(self, geometry: Geometry) -> "KerasBatches":
        index, count = geometry.shard
        if count > 1:
            raise DataError(
                f"x is a {type(self._dataset).__name__}, whose batches every process would read, but {count} processes "
                "train together. Expected the batches of this process. Pass a function that returns every "
                f"{count}. batch: lambda: (data[i] for i in range({index}, len(data), {count}))."
            )
        return KerasBatches(self._dataset, geometry.seed)


class KerasBatches:
    """The batches of a Keras dataset, each once per epoch, in an order that depends only on (seed, epoch).

    `on_epoch_begin` and `on_epoch_end` are called around every epoch of a run, evaluation or prediction. With `workers`
    above one, that many threads read ahead; `use_multiprocessing` also means threads. A dataset without a length is
    endless, and needs `steps_per_epoch`, `steps` or `validation_steps`.

    A run resumes exactly if the dataset overrides neither hook or has a method `set_epoch(epoch)`, which is called
    first, and before every pass that begins inside an epoch, with the number of the pass. Otherwise the effect of the
    hooks in earlier epochs is unknown, and resuming raises.

    Args:
      dataset: the Keras dataset.
      seed: determines the order of the batches; None keeps the order of the dataset.

    Raises:
      DataError: if the dataset has no batches, or its length is not an integer or changes.
    """

    def __init__(self, dataset: Any, seed: int | None) -> None:
        self._dataset, self._seed = dataset, seed
        self.steps: int | None = _length(dataset)
        self.endless = self.steps is None
        self.examples: int | None = None
        self.labels: Any = None
        self.classes = names_of(dataset)
        self.report: Mapping[str, float] = {}
        if self.steps == 0:
            raise DataError(f"The {type(dataset).__name__} has no batches: its length is 0. Expected at least one.")
        workers, processes = getattr(dataset, "workers", 1), getattr(dataset, "use_multiprocessing", False)
        self._threads = workers if workers > 1 or (workers and processes) else 0
        if self._threads and processes:
            _log.info("use_multiprocessing: %d threads read ahead instead of processes.", self._threads)
        self._warned = False
        self._prepared: int | None = None  # the pass that `set_epoch` was called for

    @property
    def description(self) -> Mapping[str, Any]:
        return {"source": type(self._dataset).__name__, "batches": self.steps}

    @property
    def replayable(self) -> bool:
        """True if a resumed run can restore its position in the data."""
        kind, base = type(self._dataset), _base(self._dataset)
        own = getattr(self._dataset, "__dict__", {})
        overridden = any(hook in own or getattr(kind, hook, None) is not getattr(base, hook, None) for hook in _HOOKS)
        return not overridden or hasattr(self._dataset, "set_epoch")

    def state_dict(self) -> None:
        """Return None, because the position is a number of batches; warn once if that number is not enough."""
        if not self.replayable and not self._warned:
            self._warned = True
            _log.warning(
                "%s overrides on_epoch_begin or on_epoch_end, so a run cannot resume exactly from this checkpoint. "
                "Implement a method set_epoch(epoch) that sets the order of the epoch.",
                type(self._dataset).__name__,
            )

    def load_state_dict(self, state: None) -> None:
        """Do nothing, because `epoch(epoch, start)` restores the position."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        self._prepare(epoch)
        self._prepared = None
        if (length := _length(self._dataset)) != self.steps:
            raise DataError(
                f"The length of the {type(self._dataset).__name__} was {self.steps} batches and is {length}. Expected "
                "an equal number in every epoch. For other data call fit again, with initial_epoch."
            )
        numbers: Iterable[int] = itertools.count() if self.steps is None else range(self.steps)
        if self._seed is not None and self.steps is not None:
            numbers = np.random.default_rng((self._seed, epoch)).permutation(self.steps).tolist()
        yield from in_order(self._batch, itertools.islice(numbers, start, None), self._threads)

    def begin_epoch(self, number: int) -> None:
        self._prepare(number)
        self._call("on_epoch_begin")

    def end_epoch(self) -> None:
        self._call("on_epoch_end")

    def _prepare(self, number: int) -> None:
        if self._prepared != number and hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(number)
        self._prepared = number

    def _batch(self, number: int) -> Batch:
        item = self._dataset[number]
        # Keras treats a list as a tuple.
        return as_batch(tuple(item) if isinstance(item, list) else item, self._dataset)

    def _call(self, hook: str) -> None:
        if hasattr(self._dataset, hook):
            getattr(self._dataset, hook)()
