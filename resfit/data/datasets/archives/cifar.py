"""The archives of CIFAR-10 and CIFAR-100: binary records, or pickles for Python.

A reader of plain values reads the pickles: `pickle.load` would run code that a file names.
"""

import gzip
import io
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from resfit._utils.pickles import Placeholder, read_pickle
from resfit.data.datasets.archives.urls import CifarArchive
from resfit.errors import DataError, WeightsError

_PIXELS = 32 * 32 * 3
_LARGEST = 1 << 28  # bytes per member: 1.7 times the largest real member
_Arrays = tuple[np.ndarray, np.ndarray]


def read(path: Path, archive: CifarArchive) -> dict[str, _Arrays]:
    """Read the archive or its unpacked folder (format: https://www.cs.toronto.edu/~kriz/cifar.html).

    Args:
      path: a .tar.gz file, which is not unpacked; a folder that contains one of the two archives or its unpacked
        folder; or the unpacked folder itself.
      archive: the description of the dataset.

    Returns:
      "train" and "test" -> images (examples, 32, 32, 3) uint8 and class numbers (examples,) uint8.

    Raises:
      DataError: if the archive is damaged or lacks a member, or if a member has another format.
    """
    forms = archive.parts, archive.pickled
    contents = _contents(path, archive)
    binary, pickled = ([name for members in form.values() for name in members] for form in forms)
    wanted = pickled if not contents.keys() & set(binary) and contents.keys() & set(pickled) else binary
    if missing := sorted(set(wanted) - set(contents)):
        raise DataError(
            f"{path} does not contain {', '.join(missing)}. Expected the binary or the Python version of the dataset, "
            "as an archive or unpacked. Download that archive."
        )
    if wanted is binary:
        return {
            part: _binary(path, [contents[name] for name in names], archive.labels) for part, names in forms[0].items()
        }
    return {
        part: _joined(_pickled(f"{path}: {name}", contents[name], archive.key) for name in names)
        for part, names in forms[1].items()
    }


def _contents(path: Path, archive: CifarArchive) -> dict[str, bytes]:
    """Return the wanted members, by name, of an archive or folder."""
    wanted = {name for form in (archive.parts, archive.pickled) for names in form.values() for name in names}
    if not path.is_file():
        places = path / archive.remote.name, path / archive.python
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            return _unpacked(path, wanted, archive)
        path = found
    import tarfile  # slow to import and rarely needed

    try:
        return _members(path, wanted)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if isinstance(error, PermissionError):
            raise
        raise DataError(
            f"{path} is damaged: {error}. Expected a complete .tar.gz file. Delete it and download it again."
        ) from error


def _unpacked(folder: Path, wanted: Iterable[str], archive: CifarArchive) -> dict[str, bytes]:
    """Return the wanted files of a folder that contains the unpacked folder, or is the unpacked folder."""
    contents = {}
    for name in wanted:
        place = next((place for place in (folder / name, folder / Path(name).name) if place.is_file()), None)
        if place is not None:
            _check_size(folder, name, place.stat().st_size)
            contents[name] = place.read_bytes()
    if not contents:
        raise DataError(
            f"{folder} is not a folder that contains {archive.remote.name}, {archive.python}, or the files of one of "
            f"them. Expected the original files. Download {archive.remote.url}."
        )
    return contents


def _members(archive: Path, wanted: set[str]) -> dict[str, bytes]:
    import tarfile  # slow to import and rarely needed

    contents = {}
    with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if name not in wanted or not member.isfile():  # a link may lead anywhere
                continue
            _check_size(archive, name, member.size)
            if (file := tar.extractfile(member)) is not None:
                contents[name] = file.read()
        while stream.read(1 << 20):  # gzip verifies its checksum at the end of the file
            pass
    return contents


def _check_size(path: Path, name: str, size: int) -> None:
    if size > _LARGEST:
        raise DataError(
            f"{path} contains {name} with {size} bytes. Expected at most {_LARGEST}: this is not the original file. "
            "Download it again."
        )


def _binary(path: Path, contents: Sequence[bytes], labels: int) -> _Arrays:
    """Return images and classes of records: `labels` bytes, the last of which is the class, then the pixels."""
    length = labels + _PIXELS
    for content in contents:
        if not content or len(content) % length:
            raise DataError(
                f"A member of {path} has {len(content)} bytes. Expected records of {length} bytes each: this is not "
                "the original file. Download it again."
            )
    rows = np.concatenate([np.frombuffer(content, np.uint8).reshape(-1, length) for content in contents])
    return _images(rows[:, labels:]), rows[:, labels - 1].copy()


def _pickled(name: str, content: bytes, key: str) -> _Arrays:
    """Return images and classes of a dict of class numbers, under `key`, and one row of pixels for each image."""
    try:
        value = read_pickle(io.BytesIO(content))
    except WeightsError as error:
        raise DataError(
            f"{name} is not a batch of the dataset. {str(error).split('. ')[0]}. Expected the original file. Download "
            "it again."
        ) from error
    pixels, classes = _pixels(value), value.get(key) if isinstance(value, dict) else None
    whole = isinstance(classes, list) and all(type(label) is int and 0 <= label < 256 for label in classes)
    if pixels is None or not whole or not 0 < len(pixels) == len(classes or ()):
        raise DataError(
            f"{name} does not contain rows of {_PIXELS} pixels under 'data' and one class number for each under "
            f"{key!r}. Expected the original file. Download it again."
        )
    return _images(pixels), np.array(classes, np.uint8)


def _pixels(value: Any) -> np.ndarray | None:
    """Return the array "data" of a batch, (images, pixels) uint8; None if there is no such array.

    The file describes the array as NumPy does: version, shape, dtype, True for Fortran's order, and the bytes. The
    reader returns these as text, because Python 2 wrote the files.
    """
    array = value.get("data") if isinstance(value, dict) else None
    state = array.state if isinstance(array, Placeholder) else None
    match state:
        case (_, (int(rows), int(pixels)), _, False, str() | bytes() as content):
            content = content.encode("latin-1", "ignore") if isinstance(content, str) else content
            if pixels == _PIXELS and len(content) == rows * _PIXELS:
                return np.frombuffer(content, np.uint8).reshape(rows, _PIXELS)
    return None


def _images(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rearrange(rows, "n (c h w) -> n h w c", c=3, h=32))


def _joined(parts: Iterable[_Arrays]) -> _Arrays:
    images, classes = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(classes)
