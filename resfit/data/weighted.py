"""Class weights for data that come in batches."""

from collections.abc import Mapping

from resfit.data.batches import Batch, Batches
from resfit.data.class_weights import check_class_weight, class_weights
from resfit.data.mapped import MappedBatches
from resfit.errors import DataError


class ClassWeighted(MappedBatches):
    """Batches with one weight per example by its class, as with Keras's class_weight.

    Args:
      batches: batches without weights.
      class_weight: class number -> weight; other classes have weight 1.

    Raises:
      DataError: if class_weight is invalid; during iteration, if a batch has weights or no labels.
    """

    def __init__(self, batches: Batches, class_weight: Mapping[int, float]) -> None:
        self._class_weight = check_class_weight(class_weight)
        weights = {str(number): float(weight) for number, weight in sorted(self._class_weight.items())}
        super().__init__(batches, {"class_weight": weights})

    def _map(self, batch: Batch) -> Batch:
        if batch.weight is not None:
            raise DataError("Got both class_weight and sample_weight. Multiply them into one sample_weight.")
        if batch.y is None:
            raise DataError("class_weight needs labels, but the batches have no labels. Expected batches (x, y).")
        return batch._replace(weight=class_weights(batch.y, self._class_weight))
