"""Paths as users write them."""

import os
import pathlib


def expand_user(path: str | os.PathLike[str]) -> str:
    """Return a path in which `~` or `~name` at the beginning is that user's home folder, as a shell replaces it.

    Args:
      path: relative or absolute. One that begins with another name is returned as it is.

    Raises:
      TypeError: if the path is not a str or an os.PathLike of one.
      FileNotFoundError: if this user has no home folder.

    Example:
      >>> expand_user("~/runs/a") == os.path.join(os.path.expanduser("~"), "runs", "a")
      True
      >>> expand_user("runs/~")
      'runs/~'
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"Expected a path as str or os.PathLike, got {path!r}. Decode bytes by os.fsdecode.")
    expanded = os.path.expanduser(text)
    if expanded.replace(os.sep, "/").partition("/")[0] == "~":
        raise FileNotFoundError(f"{text!r} is in your home folder, and none is known. Set HOME, or pass a full path.")
    return expanded


def cache_folder() -> pathlib.Path:
    """Return where resfit keeps what it can make again: `~/.cache/resfit`, or `resfit` in XDG_CACHE_HOME."""
    return pathlib.Path(expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "resfit"
