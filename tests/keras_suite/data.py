"""The data adapters of Keras, on `resfit.data`."""

import itertools
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resfit.data import Batch, Epochs, Geometry, as_batches
from resfit.data.class_weights import class_weights
from resfit.trainer.config import FitConfig
from tests.keras_suite.names import NotTranslated, adapted, refuse


def _items(batch: Batch) -> Any:
    """Return a batch as Keras hands it out."""
    parts = jax.tree.map(_placed, (batch.x, batch.y, batch.weight))
    length = max(i + 1 for i, part in enumerate(parts) if part is not None)
    return parts[0] if length == 1 else parts[:length]


def _placed(array: Any) -> Any:
    if array.dtype.itemsize == 8:
        adapted("arrays of 64 bits become arrays of 32 bits when they are on the device")
        return np.asarray(jnp.asarray(array))
    return array


class Adapter:
    """A dataset in batches.

    Args:
      x: the data, as in `fit`.
      y: the labels.
      sample_weight: the weights.
      batch_size: for arrays.
      shuffle: as in `fit`.
      class_weight: as in `fit`.
      steps: steps per epoch.
    """

    def __init__(
        self, x: Any, y: Any = None, sample_weight: Any = None, batch_size: int | None = None, steps: Any = None,
        shuffle: Any = False, class_weight: Any = None, distribution: Any = None,
    ) -> None:  # fmt: skip
        refuse("data adapters", distribution=distribution)
        shuffle = FitConfig(shuffle=shuffle).shuffle
        geometry = Geometry(batch_size or 32, seed=0 if shuffle else None)
        self._data = x
        if isinstance(x, types.GeneratorType):
            x = self._checked(x)
        self.batches = as_batches(x, y, sample_weight, class_weight or None, geometry=geometry)
        if class_weight and not isinstance(x, Iterator):
            adapted("an error of the first batch is raised when it is read, not before")
            next(iter(self.batches.epoch(0)))
        self.steps = steps
        self.batch_size = batch_size if batch_size else getattr(x, "batch_size", None)

    @staticmethod
    def _checked(x: Any) -> Iterator[Any]:
        """Return a generator with the same items, after it is known to have one."""
        first = next(x, None)
        if first is None:
            adapted("an error of the first batch is raised when it is read, not before")
            next(iter(as_batches(x, geometry=Geometry(32)).epoch(0)))
        return itertools.chain([first], x)

    @property
    def num_batches(self) -> int | None:
        return self.batches.steps

    @property
    def _examples(self) -> int | None:
        if self.batch_size is None:
            return None
        if hasattr(self._data, "dataset") and hasattr(self._data.dataset, "__len__"):
            adapted("the size of the last batch is that of the DataLoader's dataset")
            return len(self._data.dataset)
        return self.batches.examples

    @property
    def has_partial_batch(self) -> bool | None:
        return None if self._examples is None else bool(self.partial_batch_size)

    @property
    def partial_batch_size(self) -> int | None:
        return None if self._examples is None else self._examples % self.batch_size

    def get_numpy_iterator(self) -> Iterator[Any]:
        return (_items(batch) for batch in self.batches.epoch(0))

    get_jax_iterator = get_numpy_iterator

    def get_tf_dataset(self) -> Any:
        raise NotTranslated("get_tf_dataset")

    def get_torch_dataloader(self) -> Any:
        raise NotTranslated("get_torch_dataloader")

    def on_epoch_begin(self) -> None:
        """Do nothing: `epoch` of resfit's data begins and ends the epoch."""

    on_epoch_end = on_epoch_begin


class EpochIterator:
    """Epochs of a dataset, as `fit` takes them."""

    def __init__(
        self, x: Any, y: Any = None, sample_weight: Any = None, batch_size: int | None = None,
        steps_per_epoch: int | None = None, shuffle: Any = False, class_weight: Any = None,
        steps_per_execution: int = 1,
    ) -> None:  # fmt: skip
        refuse("EpochIterator", steps_per_execution=None if steps_per_execution == 1 else steps_per_execution)
        self.data_adapter = Adapter(x, y, sample_weight, batch_size, None, shuffle, class_weight)
        self._epochs = Epochs(self.data_adapter.batches, steps_per_epoch)

    @property
    def num_batches(self) -> int | None:
        return self._epochs.steps

    def __iter__(self) -> Iterator[Any]:
        for step, batch in enumerate(self._epochs.next()):
            yield step, step, [_items(batch)]

    def enumerate_epoch(self) -> Iterator[Any]:
        return iter(self)


def class_weight_to_sample_weights(y: Any, class_weight: Any) -> np.ndarray:
    """Return the weight of each label."""
    return class_weights(np.asarray(y), class_weight)


trainers = {
    "ArrayDataAdapter": Adapter,
    "EpochIterator": EpochIterator,
    "GeneratorDataAdapter": Adapter,
    "TFDatasetAdapter": Adapter,
    "TorchDataLoaderAdapter": Adapter,
    "GrainDatasetAdapter": Adapter,
    "get_data_adapter": Adapter,
    "class_weight_to_sample_weights": class_weight_to_sample_weights,
}
