"""Class weights for data whose labels come with the batches."""

from collections.abc import Iterator, Mapping
from typing import Any

from resfit.data.arrays import check_class_weight, class_weights
from resfit.data.batches import Batch, Batches, Positioned, description_of
from resfit.errors import DataError


class ClassWeighted:
    """Batches whose examples weigh by their class, as Keras's class_weight.

    Args:
      batches: without weights of their own.
      class_weight: class number -> weight; classes that are not named weigh 1.

    Raises:
      DataError: if class_weight is none; while iterating: if a batch has weights already, or no labels.
    """

    def __init__(self, batches: Batches, class_weight: Mapping[int, float]) -> None:
        self._batches = batches
        self._class_weight = check_class_weight(class_weight)

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
    def report(self) -> Mapping[str, float]:
        return self._batches.report

    @property
    def description(self) -> Mapping[str, Any]:
        weights = {str(number): float(weight) for number, weight in sorted(self._class_weight.items())}
        return description_of(self._batches) | {"class_weight": weights}

    @property
    def replayable(self) -> bool:
        return bool(getattr(self._batches, "replayable", True))

    def state_dict(self) -> Any:
        return self._batches.state_dict() if isinstance(self._batches, Positioned) else None

    def load_state_dict(self, state: Any) -> None:
        if isinstance(self._batches, Positioned):
            self._batches.load_state_dict(state)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in self._batches.epoch(epoch, start):
            if batch.weight is not None:
                raise DataError("Got both class_weight and sample_weight. Multiply them into one sample_weight.")
            if batch.y is None:
                raise DataError("class_weight needs labels, and the batches have none. Expected batches (x, y).")
            yield batch._replace(weight=class_weights(batch.y, self._class_weight))
