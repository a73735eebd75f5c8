"""Conversion of every supported input to `Batches`."""

import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from resfit._utils.keywords import checked
from resfit.data.batches import Batches, Geometry, Source, Stream
from resfit.data.class_weights import class_weights
from resfit.data.decode import is_picture
from resfit.data.device import DeviceSource
from resfit.data.indexed import IndexedBatches
from resfit.data.sources.arrays import ArraySource
from resfit.data.sources.files import ImageFiles
from resfit.data.sources.grain import from_grain, is_grain
from resfit.data.sources.huggingface import huggingface, is_dataset
from resfit.data.sources.iterables import IterableBatches
from resfit.data.sources.keras_dataset import KerasDataset, is_keras_dataset
from resfit.data.sources.stored import is_stored
from resfit.data.sources.tfds_source import TfdsSource, is_data_source
from resfit.data.sources.torch_dataset import from_torch, is_torch_dataset
from resfit.data.sources.torch_loader import TorchLoader, is_loader
from resfit.data.values import refuse_sparse
from resfit.data.weighted import ClassWeighted
from resfit.errors import DataError


@checked("function arguments")
def as_batches(
    x: Any,
    y: Any = None,
    weight: Any = None,
    class_weight: Mapping[int, float] | None = None,
    *,
    geometry: Geometry,
    cache: str | None = None,
    known: DeviceSource | None = None,
    device: jax.Device | None = None,
) -> Batches:
    """Return the batches of any input that `fit` accepts.

    Args:
      x: arrays, or dicts and tuples of arrays; a `Source` or `Stream`; a dataset of TFDS, Hugging Face, Grain, PyTorch
        or Keras (`PyDataset`); an iterable of batches, such as a PyTorch `DataLoader`; a function that returns an
        iterator of batches; or `Batches`.
      y: labels, only with arrays.
      weight: (examples,) weights, only with arrays.
      class_weight: class number -> weight.
      geometry: how to cut examples into batches.
      cache: "device" to keep the whole dataset on the device; None to send batches one by one.
      known: the dataset that an earlier call left on the device; used again if it holds the same arrays.
      device: for `cache="device"` (default: the first).

    Raises:
      DataError: if `x` has none of these forms, or the arguments do not fit the form of `x`.
    """
    _check_cache(cache, geometry)
    check_form(x)
    if in_memory(x):
        if class_weight is not None:
            if weight is not None:
                raise DataError("Got both class_weight and sample_weight. Multiply them into one sample_weight.")
            weight = class_weights(y, class_weight)
        source = ArraySource(x, y, weight)
        if cache == "device" and known is not None and known.holds(source):
            return IndexedBatches(known, geometry)
        _release(known)
        return _indexed(source, geometry, cache, device)
    _release(known)
    if y is not None or weight is not None:
        raise DataError(
            f"x is a {type(x).__name__}, which makes its own batches. Expected labels and weights inside the batches, "
            "as (x, y, sample_weight), not as arguments."
        )
    batches = _of_data(adapted(x), geometry, cache, device)
    return batches if class_weight is None else ClassWeighted(batches, class_weight)


def _release(known: DeviceSource | None) -> None:
    if known is not None:
        known.release()


def _check_cache(cache: str | None, geometry: Geometry) -> None:
    if cache not in (None, "device"):
        raise DataError(f"Expected cache to be None or 'device', got {cache!r}.")
    if cache is not None and geometry.shard[1] > 1:
        raise DataError(
            f"cache='device' keeps all examples on one device, but {geometry.shard[1]} processes train together. Leave "
            "cache out: each process reads its part of every batch."
        )


def check_form(x: Any) -> None:
    """Raise if `x` is None, a number, a single image, a path, or a sparse matrix."""
    if is_picture(x):
        raise DataError(
            f"x is one PIL image of size {x.size}. Expected a batch of pixels. Pass the image to "
            "model.predict_images(image), or model.transforms.batch([image]) to predict."
        )
    if isinstance(x, numbers.Number):
        raise DataError(
            f"x is {x!r}. Expected images: an array, a dataset, or an iterable of batches. The number of epochs is "
            "fit(x, y, epochs=3), and the learning rate is compile(learning_rate=0.1)."
        )
    if x is None:
        raise DataError("x is None. Expected images: an array, a dataset, or an iterable of batches.")
    if isinstance(x, Mapping) and not isinstance(x, dict):  # np.load of an .npz file, h5py.File
        raise DataError(
            f"x is a {type(x).__name__} of {list(x)[:5]}. Expected its arrays: pass x['images'] and x['labels'] by "
            "their names, or dict(x) for a network with several inputs."
        )
    if isinstance(x, str | os.PathLike):
        raise DataError(
            f"x is the {type(x).__name__} {str(x)!r}. Expected data, got a path or a name. Load a folder of images "
            "with resfit.data.folder(path), and a dataset by name with resfit.data.load(name)."
        )
    refuse_sparse("x", x)


def _of_data(x: Any, geometry: Geometry, cache: str | None, device: jax.Device | None) -> Batches:
    if is_source(x):
        return _indexed(x, geometry, cache, device)
    if cache is not None:
        raise DataError(
            f"cache={cache!r} needs examples with random access, but x is a {type(x).__name__}. Leave cache out."
        )
    if isinstance(x, Stream):
        return x.batches(geometry)
    if isinstance(x, Batches):
        return x
    if isinstance(x, Iterable) or callable(x):
        return IterableBatches(x)
    raise DataError(
        f"x is a {type(x).__name__}. Expected arrays, a dataset of TFDS, Hugging Face, Grain, PyTorch or Keras, "
        "or an iterable of (x, y) batches."
    )


def adapted(x: Any) -> Any:
    """Convert a dataset of another library to a `Source`, `Stream` or iterable of batches; return other data as is."""
    for matches, adapt in _ADAPTERS:
        if matches(x):
            return adapt(x)
    return x


# (test, adapter). The tests compare module names, so that no library is imported that the user does not use.
_ADAPTERS: list[tuple[Callable[[Any], bool], Callable[[Any], Any]]] = [
    (is_dataset, huggingface),
    (is_grain, from_grain),
    (is_data_source, TfdsSource),
    (is_keras_dataset, KerasDataset),
    (is_loader, TorchLoader),
    (is_torch_dataset, from_torch),
]


def is_source(x: Any) -> bool:
    """Return True if `x` has the attributes of a `Source`."""
    return all(hasattr(x, name) for name in ("take", "labels", "threads", "__len__"))


def in_memory(x: Any) -> bool:
    """Return True for an array, also of a file, or a dict, tuple or list of arrays.

    A list of tuples or dicts is a list of batches.
    """
    if isinstance(x, list) and x and isinstance(x[0], tuple | dict):
        return False
    if is_source(x) or any(matches(x) for matches, _ in _ADAPTERS):  # a DatasetDict is a dict, but not of arrays
        return False
    return isinstance(x, list | tuple | dict) or hasattr(x, "__array__") or is_stored(x)


def image_size(x: Any) -> tuple[int, int] | None:
    """Return (height, width) of images in arrays, or of image files with a `size`; None if that is unknown."""
    if isinstance(x, ImageFiles):
        return x.size
    shape: tuple[int, ...] = getattr(x, "shape", ())
    return (shape[1], shape[2]) if in_memory(x) and len(shape) == 4 else None


def _indexed(source: Source, geometry: Geometry, cache: str | None, device: jax.Device | None) -> IndexedBatches:
    return IndexedBatches(DeviceSource(source, device) if cache == "device" else source, geometry)
