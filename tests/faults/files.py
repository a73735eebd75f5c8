"""A layer between a run and its folder that can observe every file operation or make it fail.

It sees all operations of Python, including those of Orbax. It does not see those of TensorStore in C++; small disks,
limits and damaged files test these.
"""

import contextlib
import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Action = Callable[[str], None]  # called with the name of an operation; raising makes the operation fail

# The first argument of each is the path that it changes.
_RANDOM = re.compile("[0-9a-f]{32}")
_OPERATIONS = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir")


class _Written:
    """A file that calls `ask` before each write; a write that fails has written half."""

    def __init__(self, file: Any, ask: Callable[[], None]) -> None:
        self._file, self._ask = file, ask

    def write(self, content: Any) -> Any:
        try:
            self._ask()
        except OSError:
            self._file.write(content[: len(content) // 2])
            raise
        return self._file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Written":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextlib.contextmanager
def watched(folder: Path, action: Action) -> Iterator[None]:
    """Call `action` before each operation that changes something in the folder, one at a time.

    The name of an operation is such as "rename 3.unsynced": the operation, and its path inside the folder. Equal runs
    have equal names.
    """
    lock, root = threading.RLock(), os.path.realpath(folder)

    def ask(what: str, path: Any, dir_fd: int | None = None) -> None:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        elif dir_fd is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
        path = os.path.realpath(path)
        if path == root or path.startswith(root + os.sep):
            with lock:
                action(_RANDOM.sub("#", f"{what} {os.path.relpath(path, root)}"))

    def asking(name: str) -> Any:
        real = getattr(os, name)

        def operation(path: Any, *arguments: Any, **more: Any) -> Any:
            ask({"remove": "unlink", "replace": "rename"}.get(name, name), path, more.get("dir_fd"))
            return real(path, *arguments, **more)

        return operation

    real_open = io.open

    def opening(file: Any, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return real_open(file, mode, *arguments, **more)
        ask("open", file)
        return _Written(real_open(file, mode, *arguments, **more), lambda: ask("write", file))

    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        ask("fsync", descriptor)
        real_fsync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        for name in _OPERATIONS:
            patch.setattr(os, name, asking(name))
        # rmtree looks for the functions themselves in this set.
        patch.setattr(os, "supports_dir_fd", {*os.supports_dir_fd, *(getattr(os, name) for name in _OPERATIONS)})
        patch.setattr(os, "fsync", fsync)
        patch.setattr(io, "open", opening)
        patch.setattr("builtins.open", opening)
        yield


def copy(folder: Path, target: Path) -> None:
    """Copy a folder as a process that dies now leaves it, even during a write."""
    for here, _, names in os.walk(folder):
        (target / Path(here).relative_to(folder)).mkdir(parents=True, exist_ok=True)
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                (target / Path(here).relative_to(folder) / name).write_bytes((Path(here) / name).read_bytes())
