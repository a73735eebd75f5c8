"""TensorFlow Datasets, read at random and without TensorFlow."""

import difflib
import os
from typing import Any

from resfit._utils.optional_import import load_package
from resfit._utils.paths import expand_user
from resfit.data.sources.tfds_source import INSTALL, TfdsSource, columns_of
from resfit.errors import DataError, MissingPackageError

_Path = str | os.PathLike[str]
_WITHOUT_TENSORFLOW = ("mnist", "fashion_mnist", "digits", "mnist_5k")  # what prepare_tfds prepares


def tfds(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image: str | None = None,
    label: str | None = None,
    download: bool = False,
) -> TfdsSource:
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
    data_dir = None if data_dir is None else expand_user(data_dir)
    package = load_package("tensorflow_datasets", "resfit.data.tfds", INSTALL)
    load_package("array_record.python.array_record_data_source", "resfit.data.tfds", INSTALL)
    try:
        builder = package.builder(name, data_dir=data_dir)
        if download and not builder.is_prepared():
            builder = package.builder(name, data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
    except package.core.registered.DatasetNotFoundError as error:
        known = package.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name.partition("/")[0], [*known, *_WITHOUT_TENSORFLOW], n=1)
        raise DataError(
            f"TensorFlow Datasets has no {name!r}, neither among its own nor prepared in {_place(package, data_dir)}. "
            f"Expected a name from tfds.list_builders(){', such as ' if near else ''}{', '.join(near)}."
        ) from error
    except ModuleNotFoundError as error:
        if not _lacks_tensorflow(error):
            raise
        raise MissingPackageError(
            f"Preparing {name!r} needs TensorFlow, which is not installed; reading it does not. Expected it once: "
            f"{_with_tensorflow(name, data_dir)}.{_without_tensorflow(name, data_dir)}",
            name="tensorflow",
        ) from error
    columns = columns_of(package, builder.info, image, label)
    # Whatever else is an image is left as it is: decoding it would be for nothing.
    others = {
        key: package.decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, package.features.Image) and key not in columns
    }
    try:
        source = builder.as_data_source(split, decoders=others or None)
    except (NotImplementedError, KeyError, ValueError) as error:
        raise DataError(_why_not(builder, name, split, data_dir, error)) from error
    return TfdsSource(source, *columns)


def _why_not(builder: Any, name: str, split: str, data_dir: _Path | None, error: Exception) -> str:
    """What to say when TFDS will not give a data source: its own messages name causes that are not there."""
    if not builder.is_prepared():
        return (
            f"{name!r} is not prepared in {builder.data_dir}. Expected it to be, once: with a network, "
            f"resfit.data.tfds({name!r}, ...{_argument(data_dir)}, download=True); or if preparing needs TensorFlow, "
            f"as for mnist and cifar10, {_with_tensorflow(name, data_dir)}.{_without_tensorflow(name, data_dir)}"
        )
    if isinstance(error, NotImplementedError):
        return (
            f"{name!r} is prepared in {builder.data_dir} as {builder.info.file_format.value}, which has no random "
            "access. Expected array_record: prepare it again in another data_dir. Or read it with TensorFlow and pass "
            "its batches to fit: tfds.load(..., as_supervised=True).batch(n)."
        )
    return (
        f"{name!r} has no examples in the split {split!r}: {str(error).rstrip('.')}. Expected one of "
        f"{sorted(builder.info.splits)}, or a part of it such as 'train[:80%]'."
    )


def _lacks_tensorflow(error: BaseException | None) -> bool:
    """TFDS raises the error again, with the example it was at but without the module's name."""
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
