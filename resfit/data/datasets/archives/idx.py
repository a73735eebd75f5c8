"""IDX, the file format of MNIST: a short header followed by plain bytes."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from resfit.errors import DataError

_UNSIGNED_BYTES = 0x08
_LARGEST = 1 << 30  # bytes; a small compressed file can expand to more than the memory


def read(path: Path) -> np.ndarray:
    """Return the array in an IDX file of unsigned bytes (format: http://yann.lecun.com/exdb/mnist/).

    Args:
      path: the file; a name that ends in .gz means gzip compression.

    Returns:
      A uint8 array of the shape in the header.

    Raises:
      DataError: if the file has another format, or more or fewer bytes than its header says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path} is damaged: {error}. Expected a complete file. Delete it and download it again."
        ) from error
    zeros, kind, rank = content[:2], content[2:3], int.from_bytes(content[3:4])
    if zeros != b"\0\0" or kind != bytes([_UNSIGNED_BYTES]) or not rank:
        raise DataError(
            f"{path} begins with {content[:4]!r}. Expected an IDX file of unsigned bytes, as in MNIST. Download the "
            "original file."
        )
    first = 4 + 4 * rank
    shape = tuple(int.from_bytes(content[i : i + 4]) for i in range(4, first, 4))
    if len(content) > _LARGEST:
        raise DataError(
            f"{path} contains more than {_LARGEST} bytes. Expected a file as in MNIST, of at most 47 MB. Download the "
            "original file."
        )
    if len(content) - first != math.prod(shape):
        raise DataError(
            f"The header of {path} says {' x '.join(map(str, shape))} bytes; the file has "
            f"{max(0, len(content) - first)}. Expected a complete file. Delete it and download it again."
        )
    return np.frombuffer(content, np.uint8, offset=first).reshape(shape).copy()  # frombuffer is read-only
