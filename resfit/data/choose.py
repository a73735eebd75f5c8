"""Whatever is passed as x becomes `Batches`."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from resfit.data.batches import Batches, Geometry, Source, Stream
from resfit.data.decode import is_picture
from resfit.data.device import DeviceSource
from resfit.data.indexed import IndexedBatches
from resfit.data.sources.arrays import ArraySource, class_weights
from resfit.data.sources.grain import from_grain, is_grain
from resfit.data.sources.huggingface import huggingface, is_dataset
from resfit.data.sources.iterables import IterableBatches
from resfit.data.sources.keras_dataset import KerasDataset, is_keras_dataset
from resfit.data.sources.tfds_source import TfdsSource, is_data_source
from resfit.data.weighted import ClassWeighted
from resfit.errors import DataError


def as_batches(
    x: Any,
    y: Any = None,
    weight: Any = None,
    class_weight: Mapping[int, float] | None = None,
    *,
    geometry: Geometry,
    cache: str | None = None,
) -> Batches:
    """The batches of anything `fit` takes.

    Args:
      x: arrays, dicts and tuples of arrays; a `Source` or `Stream`; a data set of TFDS, Hugging Face, Grain or
        Keras (`PyDataset`); an iterable of batches; a function that returns an iterator of batches; or `Batches`.
      y: labels, with arrays only.
      weight: (examples,) likewise.
      class_weight: class number -> weight.
      geometry: how to cut what is not cut yet.
      cache: "device" to keep the whole data set there; None to send batches one by one.

    Raises:
      DataError: if x is nothing of the kind, or the arguments do not fit it.
    """
    if cache not in (None, "device"):
        raise DataError(f"Expected cache to be None or 'device', got {cache!r}.")
    if cache is not None and geometry.shard[1] > 1:
        raise DataError(
            f"cache='device' keeps all examples on one device, and {geometry.shard[1]} processes train together. Leave "
            "cache out: each process reads its part of every batch."
        )
    if is_picture(x):
        raise DataError(
            f"x is one PIL image of size {x.size}. Expected a batch of pixels: resfit.transforms.Transforms(resize, "
            "crop, mean=None, std=None).batch([image]), or model.transforms.batch([image])."
        )
    if in_memory(x) and not is_dataset(x):  # a DatasetDict is a dict, and none of arrays
        if class_weight is not None:
            if weight is not None:
                raise DataError("Got both class_weight and sample_weight. Multiply them into one sample_weight.")
            weight = class_weights(y, class_weight)
        return _indexed(ArraySource(x, y, weight), geometry, cache)
    if x is None:
        raise DataError("x is None. Expected images: an array, a data set, or an iterable of batches.")
    if isinstance(x, str | os.PathLike):
        raise DataError(
            f"x is the {type(x).__name__} {str(x)!r}; expected data, not where they are. A folder of images is "
            "resfit.data.folder(path), a data set by name resfit.data.load(name)."
        )
    if y is not None or weight is not None:
        raise DataError(
            f"x is a {type(x).__name__}, which makes its own batches: expected labels and weights inside them, as "
            "(x, y, sample_weight), not as arguments."
        )
    x = adapted(x)
    if is_source(x):
        batches: Batches = _indexed(x, geometry, cache)
    elif cache is not None:
        raise DataError(
            f"cache={cache!r} needs examples that can be had in any order, and x is a {type(x).__name__}. Leave cache "
            "out."
        )
    elif isinstance(x, Stream):
        batches = x.batches(geometry)
    elif isinstance(x, Batches):
        batches = x
    elif isinstance(x, Iterable) or callable(x):
        batches = IterableBatches(x)
    else:
        raise DataError(
            f"x is a {type(x).__name__}. Expected arrays, a data set of TFDS, Hugging Face or Grain, or an iterable of "
            "(x, y) batches."
        )
    return batches if class_weight is None else ClassWeighted(batches, class_weight)


def adapted(x: Any) -> Any:
    """A data set of another library as a `Source`, `Stream` or iterable of batches; anything else as it is."""
    for matches, adapt in _ADAPTERS:
        if matches(x):
            return adapt(x)
    return x


# (whether it is one of theirs, what makes it one of ours). Libraries are told by the names of their modules, so that
# none is imported that the user does not use.
_ADAPTERS: list[tuple[Callable[[Any], bool], Callable[[Any], Any]]] = [
    (is_dataset, huggingface),
    (is_grain, from_grain),
    (is_data_source, TfdsSource),
    (is_keras_dataset, KerasDataset),
]


def is_source(x: Any) -> bool:
    """Whether x has what a `Source` has."""
    return all(hasattr(x, name) for name in ("take", "labels", "threads", "__len__"))


def in_memory(x: Any) -> bool:
    """Whether x is arrays: one, or a dict, tuple or list of them; a list of tuples or dicts is one of batches."""
    if isinstance(x, list) and x and isinstance(x[0], tuple | dict):
        return False
    if isinstance(x, list | tuple | dict):
        return True
    return hasattr(x, "__array__")


def _indexed(source: Source, geometry: Geometry, cache: str | None) -> IndexedBatches:
    return IndexedBatches(DeviceSource(source) if cache == "device" else source, geometry)
