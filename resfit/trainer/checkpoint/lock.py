"""The lock of a folder, so that one run at a time writes to it."""

import contextlib
import fcntl
import logging
import os
import pathlib
import threading
import weakref
from collections.abc import Iterator
from typing import IO

from resfit.errors import CheckpointError

_log = logging.getLogger("resfit")

LOCK = ".lock"


class FolderLock:
    """A lock on a folder: only this process writes to it, from `take` to `release`.

    A lock on the file `.lock` in the folder keeps other runs out. The lock ends with the process, and a forked child
    does not inherit it. A folder that was deleted is created again. A folder can be moved while a run trains, and
    another run can begin in its place: call `is_held`, which compares the inodes of the folder and of its lock, before
    every write. Both stay open, because some file systems (FUSE) change the inode number of a closed file.

    Args:
      directory: the absolute path of the folder.
      named: the path that the user gave, for messages.
    """

    def __init__(self, directory: pathlib.Path, named: pathlib.Path) -> None:
        self._directory, self._named, self._lock_path = directory, named, directory / LOCK
        self._lock: IO[bytes] | None = None
        self._descriptor: int | None = None  # of the folder
        self._folder: os.stat_result | None = None  # the folder when the lock was taken
        with _guard:
            _held.add(self)

    def take(self) -> None:
        """Lock the folder, unless this process holds it already. Create the folder if it is missing.

        Raises:
          CheckpointError: if another run holds the folder.
          OSError: if the folder cannot be created or written to, was moved, or was replaced.
        """
        if self.is_held():
            return
        new = os.O_RDWR | os.O_CREAT
        if self._folder is None:
            self._directory.mkdir(parents=True, exist_ok=True)
        else:
            new |= os.O_EXCL  # an existing lock belongs to another run
            if not self.is_there():
                if self._is_elsewhere() and not self._directory.exists():
                    raise FileNotFoundError("the path does not exist any more")
                self._directory.mkdir(parents=True)
                _log.warning("The folder %s was deleted while a run wrote to it. resfit creates it again.", self)
        with _guard:  # no fork between opening the file and remembering it
            with contextlib.ExitStack() as opened:
                lock = opened.enter_context(os.fdopen(os.open(self._lock_path, new, 0o666), "r+b", buffering=0))
                self._keep_others_out(lock)
                descriptor = os.open(self._directory, os.O_RDONLY)
                opened.callback(os.close, descriptor)
                folder = os.fstat(descriptor)
                opened.pop_all()
            self.release()
            self._lock, self._descriptor, self._folder = lock, descriptor, folder

    def _keep_others_out(self, lock: IO[bytes]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"Another run writes to {str(self)!r}. Expected one run per folder. Wait until that run ends, or pass "
                "another folder."
            ) from error
        except OSError as error:  # some network file systems have no locks
            _log.warning(
                "%s cannot be locked (%s). A second run in this folder is not detected.", self._lock_path, error
            )

    def is_held(self) -> bool:
        """Return True if the path still leads to the folder that this process locked."""
        return self.is_there() and self._lock is not None and _is(self._lock_path, self._lock.fileno())

    def _is_elsewhere(self) -> bool:
        """Return True if the folder was moved and not deleted: the lock file still has a name."""
        try:
            return self._lock is not None and os.fstat(self._lock.fileno()).st_nlink > 0
        except OSError:  # on NFS, if another machine deleted the file
            return False

    def is_there(self) -> bool:
        """Return True if the path still leads to the folder that this process locked, even after `release`."""
        return self._folder is not None and _is(self._directory, self._folder)

    @contextlib.contextmanager
    def opened(self) -> Iterator[pathlib.Path]:
        """Yield a path to the held folder that stays valid when the folder is moved.

        Raises:
          OSError: if the folder is not held, or cannot be opened.
        """
        # Open the folder again: the path may lead through another mount by now, such as a read-only one.
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            if self._lock is None or self._folder is None or not os.path.samestat(os.fstat(descriptor), self._folder):
                raise FileNotFoundError(f"{str(self)!r} is no longer the folder that this run locked")
            anchor = pathlib.Path(f"/proc/self/fd/{descriptor}")
            yield anchor if anchor.is_dir() else self._directory
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Release the folder for other runs."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __str__(self) -> str:
        return str(self._named)


def _is(path: pathlib.Path, expected: os.stat_result | int) -> bool:
    """Return True if the path leads to this file, folder or open file; False if it does not or cannot be examined."""
    try:
        return os.path.samestat(path.stat(), os.fstat(expected) if isinstance(expected, int) else expected)
    except OSError:
        return False


# A forked child shares the open file and its lock. A child that outlives a killed run, such as a worker that produces
# batches, would keep the folder locked.
_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()
_guard = threading.Lock()


def _let_go() -> None:
    for folder in _held:
        folder.release()
    _guard.release()


os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_let_go)
