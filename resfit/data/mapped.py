"""The base class of batches that transform other batches."""

from collections.abc import Iterator, Mapping
from typing import Any

from resfit.data.batches import Batch, Batches, EpochAware, Positioned, classes_of, description_of


class MappedBatches:
    """Batches that transform each batch of other batches; number, order and position stay the same.

    Args:
      batches: the other batches.
      described: entries that the transformation adds to the description.
    """

    def __init__(self, batches: Batches, described: Mapping[str, Any]) -> None:
        self._batches, self._described = batches, described

    def _map(self, batch: Batch) -> Batch:
        """Return the changed batch. Every subclass overrides this method."""
        raise NotImplementedError(f"{type(self).__name__} must override `_map`.")

    @property
    def steps(self) -> int | None:
        return self._batches.steps

    @property
    def examples(self) -> int | None:
        return self._batches.examples

    @property
    def labels(self) -> Any:
        return self._batches.labels

    @property
    def classes(self) -> tuple[str, ...] | None:
        return classes_of(self._batches)

    @property
    def report(self) -> Mapping[str, float]:
        return self._batches.report

    @property
    def description(self) -> Mapping[str, Any]:
        return {**description_of(self._batches), **self._described}

    @property
    def random_access(self) -> bool:
        return bool(getattr(self._batches, "random_access", False))

    @property
    def endless(self) -> bool:
        return bool(getattr(self._batches, "endless", False))

    @property
    def replayable(self) -> bool:
        return bool(getattr(self._batches, "replayable", True))

    def state_dict(self) -> Any:
        return self._batches.state_dict() if isinstance(self._batches, Positioned) else None

    def load_state_dict(self, state: Any) -> None:
        if isinstance(self._batches, Positioned):
            self._batches.load_state_dict(state)

    def begin_epoch(self, number: int) -> None:
        if isinstance(self._batches, EpochAware):
            self._batches.begin_epoch(number)

    def end_epoch(self) -> None:
        if isinstance(self._batches, EpochAware):
            self._batches.end_epoch()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in self._batches.epoch(epoch, start):  # a generator, which can be closed
            yield self._map(batch)
