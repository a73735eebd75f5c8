"""Paths: `~`, and folders in place of files."""

import os
import pathlib
from typing import Any


def expand_user(path: str | os.PathLike[str]) -> str:
    """Return a path with `~` or `~name` at its beginning replaced by the home folder, as in a shell.

    Args:
      path: a relative or absolute path. Other paths are returned unchanged.

    Raises:
      TypeError: if the path is not a str or an os.PathLike of a str.
      FileNotFoundError: if the home folder is unknown.

    Example:
      >>> expand_user("~/runs/a") == os.path.join(os.path.expanduser("~"), "runs", "a")
      True
      >>> expand_user("runs/~")
      'runs/~'
    """
    text: Any = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str):
        remedy = " Decode bytes with os.fsdecode." if isinstance(text, bytes) else ""
        raise TypeError(f"Expected a path as str or os.PathLike, got {path!r}.{remedy}")
    expanded: str = os.path.expanduser(text)
    if expanded.replace(os.sep, "/").partition("/")[0] == "~":
        raise FileNotFoundError(f"{text!r} is in the home folder, which is unknown. Set HOME, or pass a full path.")
    return expanded


def file_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Return the absolute path of a file to write, with `~` expanded; see `expand_user`.

    Raises:
      IsADirectoryError: if the path is a folder.
    """
    found = pathlib.Path(expand_user(path)).absolute()
    if found.is_dir():
        raise IsADirectoryError(
            f"{str(found)!r} is a folder. Expected the path of a file, which is replaced if it exists. Pass another "
            "path, or remove the folder."
        )
    return found


def folder_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Return the absolute path of a folder to write to, with `~` expanded; see `expand_user`.

    Raises:
      NotADirectoryError: if the path is a file.
    """
    found = pathlib.Path(expand_user(path)).absolute()
    if found.exists() and not found.is_dir():
        raise NotADirectoryError(
            f"{str(found)!r} is a file. Expected the path of a folder, which is made if it does not exist. Pass "
            "another path, or remove the file."
        )
    return found


def cache_folder() -> pathlib.Path:
    """Return where resfit keeps what it can make again: `~/.cache/resfit`, or `resfit` in XDG_CACHE_HOME.

    The path is absolute, so that it stays the same folder after `os.chdir`.
    """
    return pathlib.Path(expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache")).absolute() / "resfit"
