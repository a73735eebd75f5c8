"""An adapter for the random-access data sources of TensorFlow Datasets."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from resfit._utils.optional_import import load_package
from resfit.data.cores import cores
from resfit.data.crops import crop_of, output_size
from resfit.data.decode import Encoded, decode
from resfit.data.records import as_labels, stack_images
from resfit.errors import DataError

INSTALL = "pip install 'resfit[tfds]'"
_MOST_THREADS = 4  # decoding small images mostly holds the interpreter lock


class TfdsSource:
    """A `Source` for the result of `tfds.data_source`; `fit` makes one unless columns must be named.

    Args:
      source: a random-access data source of TFDS.
      image: the image column; by default as in `resfit.data.tfds`.
      label: the label column; by default as in `resfit.data.tfds`.
      size: as in `resfit.data.tfds`.
      crop: as in `resfit.data.tfds`.

    Attributes:
      classes: the class names by number, or None if the label is not a ClassLabel.

    Raises:
      DataError: if a column is missing or ambiguous, or the number of examples differs from the dataset's metadata.
    """

    labels = None
    threads = min(_MOST_THREADS, cores())

    def __init__(
        self,
        source: Any,
        image: str | None = None,
        label: str | None = None,
        size: int | tuple[int, int] | None = None,
        crop: str | float | None = None,
    ) -> None:
        self._size, self._crop = output_size(size, crop), crop
        self._key: tuple[int, int] | None = None
        package = load_package("tensorflow_datasets", "resfit.data.TfdsSource", INSTALL)
        info = source.dataset_info
        self._image, self._label = columns_of(package, info, image, label)
        self._source, self._mode = _undecoded(package, source, self._image)
        if self._mode is None and self._size is not None:
            raise DataError(
                f"The column {self._image!r} of {info.full_name} holds arrays, and size={size!r} is for image files of "
                "8 bits. Expected None. Resize with compile(preprocess=...)."
            )
        names = None if self._label is None else getattr(info.features[self._label], "names", None)
        self.classes: tuple[str, ...] | None = None if names is None else tuple(names)
        # TFDS 4.9.10 silently wrote parquet files with missing rows. Only the mock of TFDS has no splits.
        promised = info.splits[source.split].num_examples if info.splits else len(source)
        if len(source) != promised:
            raise DataError(
                f"The split {source.split!r} of {info.full_name} has {promised} examples by its metadata, but "
                f"{len(source)} can be read ({info.file_format.value} files in {info.data_dir}). Expected all "
                "examples. Delete the folder and prepare the dataset again with file_format='array_record'."
            )

    @property
    def description(self) -> Mapping[str, Any]:
        name = self._source.dataset_info.full_name
        sized = {} if self._size is None else {"size": list(self._size), "crop": self._crop}
        return {"name": name, "split": str(self._source.split), "image": self._image, "label": self._label, **sized}

    def __len__(self) -> int:
        return len(self._source)

    def take(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray | None, None]:
        numbers = range(*rows.indices(len(self))) if isinstance(rows, slice) else rows.tolist()
        examples = self._source.__getitems__(list(numbers))
        names = [f"example {number} of {self._source.dataset_info.full_name}" for number in numbers]
        images = stack_images(
            [self._pixels(e[self._image], name, i) for e, name, i in zip(examples, names, numbers, strict=True)], names
        )
        if self._label is None:
            return images, None, None
        return images, as_labels([example[self._label] for example in examples], f"The column {self._label!r}"), None

    def _pixels(self, image: Any, name: str, number: int) -> Any:
        if not isinstance(image, bytes):
            return image
        crop = crop_of(self._crop, self._size, self._key, (number,))
        try:
            return decode(Encoded(image), self._mode, self._size, crop)
        except DataError as error:
            raise DataError(f"{name} cannot be used: {error}") from error


class RandomTfdsSource(TfdsSource):
    """A data source of TFDS with random crops per epoch, as an `EpochSource`."""

    def for_epoch(self, seed: int | None, epoch: int) -> "RandomTfdsSource":
        """Return the same images with the random crops of one epoch; without a seed there are no random crops."""
        cropped = copy.copy(self)
        cropped._key = None if seed is None else (seed, epoch)
        return cropped


def _undecoded(package: Any, source: Any, image: str) -> tuple[Any, str | None]:
    """Return the source with encoded images, and the mode to decode the images to.

    TFDS decodes images of more than 8 bits and images with a custom decoder; their mode is None.
    """
    feature, decoders = source.dataset_info.features[image], getattr(source, "decoders", None)
    chosen = decoders is not None and (not isinstance(decoders, dict) or image in decoders)
    if chosen or type(feature) is not package.features.Image or feature.np_dtype != np.uint8:
        return source, None
    source = copy.copy(source)
    source.decoders = {**(decoders or {}), image: package.decode.SkipDecoding()}
    return source, {1: "L", 3: "RGB", 4: "RGBA"}.get(feature.shape[-1])


def is_data_source(x: Any) -> bool:
    """Return True if `tfds.data_source` made `x`, without importing TFDS."""
    return type(x).__module__.startswith("tensorflow_datasets.core.data_sources.") and hasattr(x, "dataset_info")


def columns_of(package: Any, info: Any, image: str | None, label: str | None) -> tuple[str, str | None]:
    """Return the names of the image and label columns; the label is None if there is only an image column."""
    features, kinds = info.features, package.features
    if not isinstance(features, kinds.FeaturesDict):
        raise DataError(f"{info.full_name} has no columns but is one {features!r}. Expected an image and a label.")
    masks = {key for key, feature in features.items() if isinstance(feature, kinds.LabeledImage)}
    images = [key for key, feature in features.items() if isinstance(feature, kinds.Image) and key not in masks]
    labels = [key for key, feature in features.items() if isinstance(feature, kinds.ClassLabel)]
    declared = info.supervised_keys if info.supervised_keys and len(info.supervised_keys) == 2 else (None, None)
    image = _choose(info, "image", image, declared[0], images)
    if label is None and set(features) == {image}:
        return image, None
    return image, _choose(info, "label", label, declared[1], labels)


def _choose(info: Any, what: str, asked: str | None, declared: Any, candidates: list[str]) -> str:
    if asked is not None:
        if asked not in info.features:
            raise DataError(f"{info.full_name} has no column {asked!r}. Expected {what}= one of {_list(info)}.")
        return asked
    if isinstance(declared, str):  # it can also be a structure of several columns
        return declared
    if len(candidates) != 1:
        raise DataError(
            f"{info.full_name} has {len(candidates)} columns that could be the {what}. Expected exactly one. Name the "
            f"column: resfit.data.tfds({info.name!r}, split, {what}=...). The columns are {_list(info)}."
        )
    return candidates[0]


def _list(info: Any) -> str:
    return ", ".join(f"{key!r} ({type(feature).__name__})" for key, feature in sorted(info.features.items()))
