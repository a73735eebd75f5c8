"""Atomic writes of files."""

import contextlib
import os
import secrets
from pathlib import Path

from resfit._utils.paths import file_path


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: write a temporary file, flush it to disk, and rename it.

    Raises:
      FileNotFoundError: if the folder does not exist.
      IsADirectoryError: if the path is a folder.
    """
    file_path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"The folder {str(path.parent)!r} of {path.name} does not exist. Expected an existing folder. Create it: "
            f"pathlib.Path({str(path.parent)!r}).mkdir(parents=True)."
        )
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    opened = temporary.open("xb")
    try:
        with opened as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the error to report is the earlier one
            temporary.unlink(missing_ok=True)
        raise
