"""TensorFlow Datasets with random access, without TensorFlow."""

import difflib
import os
from typing import Any

from resfit._utils.keywords import checked
from resfit._utils.optional_import import load_package
from resfit._utils.paths import expand_user
from resfit.data.sources.tfds_source import INSTALL, RandomTfdsSource, TfdsSource, columns_of
from resfit.errors import DataError, MissingPackageError

_Path = str | os.PathLike[str]
_WITHOUT_TENSORFLOW = ("mnist", "fashion_mnist", "digits", "mnist_5k")  # the datasets of prepare_tfds


@checked("function arguments")
def tfds(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image: str | None = None,
    label: str | None = None,
    size: int | tuple[int, int] | None = None,
    crop: str | float | None = None,
    download: bool = False,
) -> TfdsSource:
    """Load a dataset of TensorFlow Datasets for `fit`, `evaluate` and `predict`, without TensorFlow.

    The dataset must be prepared in the format array_record. The image and label columns are the supervised keys of the
    dataset, else its only image and its only class label. Column names do not matter.

    Args:
      name: the name as in `tfds.builder`, such as "fashion_mnist" or "imagenet_v2/matched-frequency".
      split: the split as in TFDS, such as "train" or "train[:80%]".
      data_dir: the folder in which TFDS keeps datasets; None for the default of TFDS.
      image: the image column, if it is not the one described above.
      label: the label column, if it is not the one described above.
      size: output size in pixels: n for squares, or (height, width). None keeps the size of every image.
      crop: None resizes the whole image. "random", for training, and "center" or a share, for evaluation, are described
        in `resfit.data.folder`; (seed, epoch, row) determine a random crop.
      download: True to download and prepare a missing dataset. Preparing some datasets needs TensorFlow.

    Raises:
      DataError: if the dataset, split or column does not exist, the dataset is not prepared or has another format, or
        fewer examples can be read than its metadata say.
      MissingPackageError: without the packages of `pip install 'resfit[tfds]'`, or if preparing needs TensorFlow.

    Example:
      >>> import resfit
      >>> _ = resfit.data.prepare_tfds("digits", data_dir="datasets")
      >>> train = tfds("digits", "train", data_dir="datasets")
      >>> len(train), train.take(slice(0, 64))[0].shape, train.classes[:3]
      (1437, (64, 8, 8, 1), ('0', '1', '2'))
    """
    data_dir = None if data_dir is None else expand_user(data_dir)
    package = load_package("tensorflow_datasets", "resfit.data.tfds", INSTALL)
    load_package("array_record.python.array_record_data_source", "resfit.data.tfds", INSTALL)
    builder = _builder(package, name, data_dir, download=download)
    columns = columns_of(package, builder.info, image, label)
    # Other image columns are not decoded.
    others = {
        key: package.decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, package.features.Image) and key not in columns
    }
    try:
        source = builder.as_data_source(split, decoders=others or None)
    except (NotImplementedError, KeyError, ValueError) as error:
        raise DataError(_why_not(builder, name, split, data_dir, error)) from error
    kind = RandomTfdsSource if crop == "random" else TfdsSource
    return kind(source, *columns, size, crop)


def _builder(package: Any, name: str, data_dir: _Path | None, *, download: bool) -> Any:
    """Return the TFDS builder of a dataset; with `download`, prepare the dataset if it is missing."""
    try:
        builder = package.builder(name, data_dir=data_dir)
        if download and not builder.is_prepared():
            builder = package.builder(name, data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
    except package.core.registered.DatasetNotFoundError as error:
        known = package.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name.partition("/")[0], [*known, *_WITHOUT_TENSORFLOW], n=1)
        raise DataError(
            f"TensorFlow Datasets has no {name!r}: no builder, and no prepared dataset in {_place(package, data_dir)}. "
            f"Expected a name from tfds.list_builders(){', such as ' if near else ''}{', '.join(near)}."
        ) from error
    except ModuleNotFoundError as error:
        if not _lacks_tensorflow(error):
            raise
        raise MissingPackageError(
            f"Preparing {name!r} needs TensorFlow, which is not installed; reading it does not. Prepare it once with "
            f"{_with_tensorflow(name, data_dir)}.{_without_tensorflow(name, data_dir)}",
            name="tensorflow",
        ) from error
    return builder


def _why_not(builder: Any, name: str, split: str, data_dir: _Path | None, error: Exception) -> str:
    """Return the error message for a missing data source; TFDS's own messages name wrong causes."""
    if not builder.is_prepared():
        return (
            f"{name!r} is not prepared in {builder.data_dir}. Expected a prepared dataset. Prepare it once with "
            f"resfit.data.tfds({name!r}, ...{_argument(data_dir)}, download=True) or, if that needs TensorFlow, as for "
            f"mnist and cifar10, with {_with_tensorflow(name, data_dir)}.{_without_tensorflow(name, data_dir)}"
        )
    if isinstance(error, NotImplementedError):
        return (
            f"{name!r} is prepared in {builder.data_dir} as {builder.info.file_format.value}, which has no random "
            "access. Expected array_record. Prepare it again in another data_dir, or read it with TensorFlow and pass "
            "the batches to fit: tfds.load(..., as_supervised=True).batch(n)."
        )
    return (
        f"{name!r} has no examples in the split {split!r}: {str(error).rstrip('.')}. Expected one of "
        f"{sorted(builder.info.splits)}, or a part of it such as 'train[:80%]'."
    )


def _lacks_tensorflow(error: BaseException | None) -> bool:
    """Return True if TensorFlow is missing; TFDS wraps the original error, which names the module, in others."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name == "tensorflow":
            return True
        error = error.__cause__ or error.__context__
    return False


def _with_tensorflow(name: str, data_dir: _Path | None) -> str:
    return (
        f"tfds.builder({name!r}{_argument(data_dir)}, file_format='array_record').download_and_prepare() where "
        "TensorFlow is installed, on this machine or another one whose folder is copied"
    )


def _without_tensorflow(name: str, data_dir: _Path | None) -> str:
    if name not in _WITHOUT_TENSORFLOW:
        return ""
    return f" Or without TensorFlow: resfit.data.prepare_tfds({name!r}{_argument(data_dir)})."


def _argument(data_dir: _Path | None) -> str:
    return "" if data_dir is None else f", data_dir={os.fspath(data_dir)!r}"


def _place(package: Any, data_dir: _Path | None) -> str:
    return os.fspath(data_dir) if data_dir is not None else str(package.core.constants.DATA_DIR)
