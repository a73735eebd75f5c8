"""TensorFlow Datasets, read at random and without TensorFlow."""

import difflib
import os
from typing import Any

import numpy as np

from resfit.data.cores import cores
from resfit.data.packages import load_package
from resfit.data.records import as_labels, stack_images
from resfit.errors import DataError, MissingPackageError

_MOST_THREADS = 4  # small images spend most of their time in the interpreter, where threads take turns
_INSTALL = "pip install 'resfit[tfds]'"
_WITHOUT_TENSORFLOW = ("mnist", "fashion_mnist", "digits", "mnist_5k")  # what prepare_tfds prepares


def tfds(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image: str | None = None,
    label: str | None = None,
    download: bool = False,
) -> "TfdsSource":
    """A data set of TensorFlow Datasets, for `fit`, `evaluate` and `predict`; TensorFlow is not needed to read it.

    It must have been prepared in the format array_record. Image and label are the columns that the data set itself
    calls its supervised keys, else the only image and the only class label it has; never guessed by their names.

    Args:
      name: as in `tfds.builder`, such as "fashion_mnist" or "imagenet_v2/matched-frequency".
      split: as in TFDS, such as "train" or "train[:80%]".
      data_dir: where TFDS keeps data sets; its own default if None.
      image: the column of the images, if not as above.
      label: the column of the labels, if not as above.
      download: whether to download and prepare what is not prepared yet. Preparing some data sets needs TensorFlow.

    Raises:
      DataError: if there is no such data set, split or column, it is not prepared or in another format, or fewer
        examples can be read than it says it has.
      MissingPackageError: without the packages of `pip install 'resfit[tfds]'`, or if preparing needs TensorFlow.

    Example:
      >>> import resfit
      >>> _ = resfit.data.prepare_tfds("digits", data_dir="datasets")
      >>> train = tfds("digits", "train", data_dir="datasets")
      >>> len(train), train.take(slice(0, 64))[0].shape, train.classes[:3]
      (1437, (64, 8, 8, 1), ('0', '1', '2'))
    """
    package = load_package("tensorflow_datasets", "resfit.data.tfds", _INSTALL)
    load_package("array_record.python.array_record_data_source", "resfit.data.tfds", _INSTALL)
    try:
        builder = package.builder(name, data_dir=data_dir)
        if download and not builder.is_prepared():
            builder = package.builder(name, data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
    except package.core.registered.DatasetNotFoundError as error:
        near = difflib.get_close_matches(name.partition("/")[0], [*package.list_builders(), *_WITHOUT_TENSORFLOW])
        raise DataError(
            f"TensorFlow Datasets has no {name!r}, neither among its own nor prepared in {_place(package, data_dir)}. "
            f"Expected a name from tfds.list_builders(){', such as ' if near else ''}{', '.join(near)}."
        ) from error
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("tensorflow"):
            raise
        raise MissingPackageError(
            f"Preparing {name!r} needs TensorFlow: {error}. Reading it does not. {_ways_to_prepare(name, data_dir)}",
            name=error.name,
        ) from error
    column = _columns(package, builder.info, image, label)
    # Whatever else is an image is left as it is: decoding it would be for nothing.
    others = {
        key: package.decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, package.features.Image) and key not in column
    }
    try:
        source = builder.as_data_source(split, decoders=others or None)
    except (NotImplementedError, KeyError, ValueError) as error:
        raise DataError(_why_not(builder, name, split, data_dir, error)) from error
    return TfdsSource(source, *column)


class TfdsSource:
    """What `tfds.data_source` returns, as a `Source`. `fit` makes it by itself, except where columns must be named.

    Args:
      source: a random-access data source of TFDS.
      image: the column of the images; by default as in `resfit.data.tfds`.
      label: the column of the labels; likewise.

    Attributes:
      classes: the names of the classes, by number, or None if the label is no ClassLabel.

    Raises:
      DataError: if a column is missing or ambiguous, or fewer or more examples are there than the data set says.
    """

    labels = None
    threads = min(_MOST_THREADS, cores())

    def __init__(self, source: Any, image: str | None = None, label: str | None = None) -> None:
        package = load_package("tensorflow_datasets", "resfit.data.TfdsSource", _INSTALL)
        info = source.dataset_info
        self._image, self._label = _columns(package, info, image, label)
        self._source = source
        names = getattr(info.features[self._label], "names", None)
        self.classes: tuple[str, ...] | None = None if names is None else tuple(names)
        # TFDS writes parquet files that lack rows (seen in 4.9.10), and says nothing. Only its mock has no splits.
        promised = info.splits[source.split].num_examples if info.splits else len(source)
        if len(source) != promised:
            raise DataError(
                f"The split {source.split!r} of {info.full_name} has {promised} examples by its own count, and "
                f"{len(source)} can be read ({info.file_format.value} files in {info.data_dir}). Expected every one of "
                "them: delete the folder and prepare it again, with file_format='array_record'."
            )

    def __len__(self) -> int:
        return len(self._source)

    def take(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
        numbers = range(*rows.indices(len(self))) if isinstance(rows, slice) else rows.tolist()
        examples = self._source.__getitems__(list(numbers))
        names = [f"example {number} of {self._source.dataset_info.full_name}" for number in numbers]
        images = stack_images([example[self._image] for example in examples], names)
        return images, as_labels([example[self._label] for example in examples], f"the column {self._label!r}"), None


def is_data_source(x: Any) -> bool:
    """Whether x is what `tfds.data_source` returns for a split; TFDS is not imported to find out."""
    return type(x).__module__.startswith("tensorflow_datasets.core.data_sources.") and hasattr(x, "dataset_info")


def _columns(package: Any, info: Any, image: str | None, label: str | None) -> tuple[str, str]:
    """The columns of images and labels."""
    features = package.features
    if not isinstance(info.features, features.FeaturesDict):
        raise DataError(f"{info.full_name} has no columns but {info.features!r}. Expected an image and a label.")
    images = [
        key
        for key, feature in info.features.items()
        if isinstance(feature, features.Image) and not isinstance(feature, features.LabeledImage)  # those are masks
    ]
    labels = [key for key, feature in info.features.items() if isinstance(feature, features.ClassLabel)]
    declared = info.supervised_keys if info.supervised_keys and len(info.supervised_keys) == 2 else (None, None)

    def choose(what: str, asked: str | None, supervised: Any, candidates: list[str]) -> str:
        if asked is not None:
            if asked not in info.features:
                raise DataError(f"{info.full_name} has no column {asked!r}. Expected {what}= one of {_list(info)}.")
            return asked
        if isinstance(supervised, str):
            return supervised
        if len(candidates) != 1:
            raise DataError(
                f"{info.full_name} has {len(candidates)} columns that could be the {what}. Expected exactly one: say "
                f"which with {what}=, as in resfit.data.tfds({info.name!r}, split, {what}=...). The columns are "
                f"{_list(info)}."
            )
        return candidates[0]

    return choose("image", image, declared[0], images), choose("label", label, declared[1], labels)


def _list(info: Any) -> str:
    return ", ".join(f"{key!r} ({type(feature).__name__})" for key, feature in info.features.items())


def _why_not(builder: Any, name: str, split: str, data_dir: str | os.PathLike[str] | None, error: Exception) -> str:
    """What to say when TFDS will not give a data source: its own messages name causes that are not there."""
    if not builder.is_prepared():
        return f"{name!r} is not prepared in {builder.data_dir}. {_ways_to_prepare(name, data_dir)}"
    if isinstance(error, NotImplementedError):
        return (
            f"{name!r} is prepared in {builder.data_dir} as {builder.info.file_format.value}, which has no random "
            "access. Expected array_record: prepare it again in another data_dir. Or read it with TensorFlow and pass "
            "its batches to fit: tfds.load(..., as_supervised=True).batch(n)."
        )
    return (
        f"{name!r} has no examples in the split {split!r}: {error}. Expected one of {list(builder.info.splits)}, or a "
        "part of it such as 'train[:80%]'."
    )


def _ways_to_prepare(name: str, data_dir: str | os.PathLike[str] | None) -> str:
    where = "" if data_dir is None else f", data_dir={os.fspath(data_dir)!r}"
    ways = [f"with a network, resfit.data.tfds({name!r}, ...{where}, download=True)"]
    if name in _WITHOUT_TENSORFLOW:
        ways.insert(0, f"resfit.data.prepare_tfds({name!r}{where}), without TensorFlow")
    ways.append(
        "and where preparing needs TensorFlow, which it does for mnist, cifar10 and others that hand arrays to TFDS, "
        f"on a machine that has it: tfds.builder({name!r}{where}, file_format='array_record').download_and_prepare()"
    )
    return f"Prepare it once: {'; or '.join(ways[:-1])}; {ways[-1]}."


def _place(package: Any, data_dir: str | os.PathLike[str] | None) -> str:
    return os.fspath(data_dir) if data_dir is not None else str(package.core.constants.DATA_DIR)
