"""A quick check of image files, which lists the broken ones before training."""

import itertools
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import numpy as np

from resfit.data.cores import cores
from resfit.data.decode import decode
from resfit.errors import DataError

_log = logging.getLogger("resfit")
_SHOWN = 10
_PART = 64  # files in a task
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def readable(paths: Sequence[str], mode: str, on_error: str) -> np.ndarray:
    """Return for each file whether it can be read, (files,) bool, and report those that cannot.

    The first and last bytes of every file are read. Only a file that seems to be truncated or no image is decoded.

    Args:
      paths: of the image files.
      mode: as in `resfit.data.folder`.
      on_error: "raise", or "skip" to log the broken files as a warning.

    Raises:
      DataError: for another `on_error`, for a broken file unless `on_error` is "skip", and if no file is left.
    """
    if on_error not in ("raise", "skip"):
        raise DataError(f"Expected on_error to be 'raise' or 'skip', got {on_error!r}.")
    # A task of the pool costs more than the check of a file.
    parts = [paths[first : first + _PART] for first in range(0, len(paths), _PART)]
    with ThreadPoolExecutor(max(cores(), 1)) as pool:
        found = list(itertools.chain(*pool.map(lambda part: [_problem(path, mode) for path in part], parts)))
    good = np.asarray([problem is None for problem in found], bool)
    problems = [problem for problem in found if problem is not None]
    if not problems:
        return good
    names = [path for path, fine in zip(paths, good, strict=True) if not fine]
    listed = ", ".join(names[:_SHOWN]) + (f", ... {len(names)} in all" if len(names) > _SHOWN else "")
    if on_error == "raise" or not good.any():
        several = (
            "" if len(names) == 1 else f"{len(names)} of {len(paths)} images cannot be read: {listed}. The first: "
        )
        remedy = "" if not good.any() else " To leave out such files, pass on_error='skip'."
        raise DataError(f"{several}{problems[0]}{remedy}")
    _log.warning("%d of %d images cannot be read and are skipped: %s.", len(names), len(paths), listed)
    return good


def _problem(path: str, mode: str) -> str | None:
    """Return what is wrong with an image file, or None."""
    try:
        with open(path, "rb", buffering=0) as file:
            if _seems_whole(file):
                return None
    except OSError:
        pass  # decode raises the error that names the file
    try:
        decode(path, mode, (8, 8))  # JPEG files at an eighth of their size, which is fast
    except DataError as error:
        return str(error)
    return None


def _seems_whole(file: IO[bytes]) -> bool:
    """Return True if the first and last bytes are those of a complete image; False if that is unknown."""
    head = file.read(12)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - len(_PNG_END), 0))
    tail = file.read()
    if head.startswith(b"\xff\xd8\xff"):
        return tail.endswith(b"\xff\xd9")
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return tail == _PNG_END
    if head.startswith((b"GIF87a", b"GIF89a")):
        return tail.endswith(b";")
    if head.startswith(b"RIFF") and head.endswith(b"WEBP"):
        return int.from_bytes(head[4:8], "little") + 8 == size
    if head.startswith(b"BM"):
        return int.from_bytes(head[2:6], "little") == size
    return False
