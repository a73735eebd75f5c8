"""IDX, the format of MNIST: a short header, then plain bytes."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from resfit.errors import DataError

_UNSIGNED_BYTES = 0x08
_LARGEST = 1 << 30  # bytes; a small compressed file can hold more than fits into memory


def read(path: Path) -> np.ndarray:
    """The array in an IDX file of unsigned bytes (http://yann.lecun.com/exdb/mnist/).

    Args:
      path: the file, compressed with gzip if its name ends in .gz.

    Returns:
      uint8, of the shape that the header promises.

    Raises:
      DataError: if it is no such file, or holds more or fewer bytes than its header promises.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}. Expected a whole file: delete it and get it again.") from error
    zeros, kind, rank = content[:2], content[2:3], int.from_bytes(content[3:4])
    if zeros != b"\0\0" or kind != bytes([_UNSIGNED_BYTES]) or not rank:
        raise DataError(f"{path} begins with {content[:4]!r}. Expected an IDX file of unsigned bytes, such as MNIST's.")
    first = 4 + 4 * rank
    shape = tuple(int.from_bytes(content[i : i + 4]) for i in range(4, first, 4))
    if len(content) > _LARGEST:
        raise DataError(f"{path} holds more than {_LARGEST} bytes. Expected a file such as MNIST's, of at most 47 MB.")
    if len(content) - first != math.prod(shape):
        raise DataError(
            f"{path} promises {' x '.join(map(str, shape))} bytes and holds {max(0, len(content) - first)}. Expected a "
            "whole file: delete it and get it again."
        )
    return np.frombuffer(content, np.uint8, offset=first).reshape(shape).copy()  # bytes cannot be written to
