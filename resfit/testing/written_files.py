"""A record of the files that a piece of code writes."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
_open_lists: list[list[str]] = []  # one for each active `written_files`
_hooked = False


@contextlib.contextmanager
def written_files() -> Iterator[list[str]]:
    """Yield a list of the files and folders that Python code opens for writing, creates, moves or removes.

    The list covers all threads and holds each path once. It does not cover compiled code, or caches of Python and JAX.

    Example:
      >>> import pathlib
      >>> with written_files() as files:
      ...     _ = pathlib.Path("a.txt").write_text("1")
      ...     _ = pathlib.Path("a.txt").read_text()
      >>> files
      ['a.txt']
    """
    global _hooked
    if not _hooked:  # an audit hook cannot be removed
        sys.addaudithook(_note)
        _hooked = True
    files: list[str] = []
    _open_lists.append(files)
    try:
        yield files
    finally:
        _open_lists.remove(files)


def _note(event: str, args: tuple[Any, ...]) -> None:
    if not _open_lists:
        return
    if event == "open":
        path = args[0] if args[2] & _WRITING else None
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
        path = args[0]
    elif event in ("os.rename", "os.link", "os.symlink"):
        path = args[1]
    else:
        return
    if not isinstance(path, str | bytes):  # the number of an open file
        return
    name = os.fsdecode(path)
    if name != os.devnull and not _is_cache(name):
        for files in _open_lists:
            if name not in files:
                files.append(name)


def _is_cache(path: str) -> bool:
    cache = jax.config.values["jax_compilation_cache_dir"]
    return "__pycache__" in path or (cache is not None and os.path.abspath(path).startswith(os.path.abspath(cache)))
