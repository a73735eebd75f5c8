"""Writes a file whole or not at all."""

import contextlib
import os
import secrets
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Write beside the file's place, flush to the disk, and move it there.

    Raises:
      FileNotFoundError: if there is no such folder.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(path.parent)!r} to write {path.name} into. Make it first: "
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
        with contextlib.suppress(OSError):  # what went wrong before is the cause
            temporary.unlink(missing_ok=True)
        raise
