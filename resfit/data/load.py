"""The classic small data sets, as arrays."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resfit.data.archives import idx
from resfit.data.archives.download import Remote, fetch
from resfit.data.archives.published import IDX_FILES
from resfit.errors import DataError

Split = tuple[np.ndarray, np.ndarray]

_EXAMPLES = {"fashion_mnist": (60_000, 10_000)}  # in the training and the test part
_PACKAGED = Path("/usr/share/datasets")  # where Debian's packages of data sets put them


def load(name: str, path: str | os.PathLike[str] | None = None) -> tuple[Split, Split]:
    """Loads a classic data set, downloading it the first time.

    | name | training | test | images | from |
    |---|---|---|---|---|
    | `"fashion_mnist"` | 60,000 | 10,000 | 28 x 28 x 1 | Zalando Research |

    What is downloaded is checked against the published checksum and kept in `~/.cache/resfit` (`resfit` in the folder
    that XDG_CACHE_HOME names). Where the Debian package dataset-fashion-mnist is installed, its files are used.

    Args:
      name: of the data set.
      path: where its original files are, if not to be downloaded: a folder that holds them.

    Returns:
      (x_train, y_train), (x_test, y_test): images (examples, height, width, channels) uint8, and class numbers
      (examples,) int32. A grey image has one channel; in keras.datasets it has no channel axis.

    Raises:
      DataError: if no data set has that name, files are missing in `path`, or they are damaged or not whole.
      DownloadError: if a file cannot be downloaded, or is not the published one.
    """
    if name not in _LOADERS:
        raise DataError(f"No data set is called {name!r}. Expected one of {sorted(_LOADERS)}.")
    train, test = _LOADERS[name](name, None if path is None else Path(path))
    found = len(train[0]), len(test[0])
    if found != _EXAMPLES[name]:
        raise DataError(
            f"The files of {name} hold {found} images for training and test. Expected {_EXAMPLES[name]}: these are not "
            "the original files."
        )
    return train, test


def _idx(name: str, path: Path | None) -> tuple[Split, Split]:
    arrays = [idx.read(_locate(name, file, path)) for file in IDX_FILES[name]]
    for images, labels in (arrays[:2], arrays[2:]):
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise DataError(
                f"The files of {name} hold images of shape {images.shape} and labels of shape {labels.shape}. Expected "
                "images of 28 x 28 and one label for each: these are not the original files."
            )
    x, y, x_test, y_test = arrays
    return (x[..., None], y.astype(np.int32)), (x_test[..., None], y_test.astype(np.int32))


def _locate(name: str, remote: Remote, path: Path | None) -> Path:
    """The file on this machine; downloaded if it has to be."""
    if path is not None:
        places = path, path / remote.name, path / remote.name.removesuffix(".gz")
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise DataError(
                f"{path} holds no {remote.name}. Expected the original file of {name}, as {remote.url} has."
            )
        return found
    packaged = _PACKAGED / name.replace("_", "-") / remote.name
    if packaged.is_file():
        return packaged
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resfit" / name / remote.name
    if not cached.is_file():
        fetch(remote, cached)
    return cached


_LOADERS: dict[str, Callable[[str, Path | None], tuple[Split, Split]]] = {"fashion_mnist": _idx}
