"""The binary archives of CIFAR-10 and CIFAR-100: records of label bytes and image bytes.

The Python version of the archives holds pickles, which can run code when they are loaded.
"""

import gzip
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from einops import rearrange

from resfit.errors import DataError

_PIXELS = 32 * 32 * 3
_LARGEST = 1 << 28  # bytes per member: 1.7 times the largest real member


def read(archive: Path, parts: Mapping[str, Sequence[str]], labels: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read members of the archive without unpacking it (format: https://www.cs.toronto.edu/~kriz/cifar.html).

    Args:
      archive: a .tar.gz file.
      parts: part -> the names of its members, in order.
      labels: label bytes at the start of each record: 1 in CIFAR-10; 2 in CIFAR-100, coarse and fine.

    Returns:
      part -> images (examples, 32, 32, 3) uint8 and labels (examples, labels) uint8.

    Raises:
      DataError: if the archive is damaged or lacks a member, or if a member does not consist of such records.
    """
    import tarfile  # slow to import and rarely needed

    wanted = {member for members in parts.values() for member in members}
    try:
        contents = _members(archive, wanted)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise DataError(
            f"{archive} is damaged: {error}. Expected a complete .tar.gz file. Delete it and download it again."
        ) from error
    if missing := sorted(wanted - set(contents)):
        raise DataError(
            f"{archive} does not contain {', '.join(missing)}. Expected the binary version of the dataset. Download "
            "that archive."
        )
    return {part: _records(archive, [contents[name] for name in members], labels) for part, members in parts.items()}


def _members(archive: Path, wanted: set[str]) -> dict[str, bytes]:
    import tarfile  # slow to import and rarely needed

    contents = {}
    with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if name not in wanted or not member.isfile():  # a link may lead anywhere
                continue
            if member.size > _LARGEST:
                raise DataError(
                    f"{archive} contains {name} with {member.size} bytes. Expected at most {_LARGEST}: this is not the "
                    "original file. Download it again."
                )
            if (file := tar.extractfile(member)) is not None:
                contents[name] = file.read()
        while stream.read(1 << 20):  # gzip verifies its checksum at the end of the file
            pass
    return contents


def _records(archive: Path, contents: Sequence[bytes], labels: int) -> tuple[np.ndarray, np.ndarray]:
    length = labels + _PIXELS
    for content in contents:
        if not content or len(content) % length:
            raise DataError(
                f"A member of {archive} has {len(content)} bytes. Expected records of {length} bytes each: this is not "
                "the original file. Download it again."
            )
    rows = np.concatenate([np.frombuffer(content, np.uint8).reshape(-1, length) for content in contents])
    images = rearrange(rows[:, labels:], "n (c h w) -> n h w c", c=3, h=32)
    return np.ascontiguousarray(images), rows[:, :labels].copy()
