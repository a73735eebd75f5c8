"""A folder that one run at a time writes to."""

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


class HeldFolder:
    """A folder that only this process writes to, from `take` to `release`. One that is deleted is made again.

    A lock on the file `.lock` in the folder keeps other runs out. The lock ends with the process, and a forked child
    does not inherit it. A folder can be moved away while a run trains, and another run can begin in its place, so
    every write is preceded by `is_held`, which compares the inodes of the folder and of its lock. Both stay open
    until then: some file systems (FUSE) give another inode number to what was closed meanwhile.

    Args:
      directory: of the folder, absolute.
      named: the path as the user gave it, for messages.
    """

    def __init__(self, directory: pathlib.Path, named: pathlib.Path) -> None:
        self._directory, self._named, self._lock_path = directory, named, directory / LOCK
        self._lock: IO[bytes] | None = None
        self._descriptor: int | None = None  # of the folder
        self._folder: os.stat_result | None = None  # what the path led to when the lock was taken
        with _guard:
            _held.add(self)

    def take(self) -> None:
        """Lock the folder, unless this process holds it already. Make it if the path leads nowhere.

        Raises:
          CheckpointError: if another run holds the folder.
          OSError: if the folder cannot be made or written to, was moved away, or was replaced.
        """
        if self.is_held():
            return
        new = os.O_RDWR | os.O_CREAT
        if self._folder is None:
            self._directory.mkdir(parents=True, exist_ok=True)
        else:
            new |= os.O_EXCL  # a lock that somebody else made is another run's
            if not self.is_there():
                if self._is_elsewhere() and not self._directory.exists():
                    raise FileNotFoundError(f"nothing is at {str(self)!r} now")
                self._directory.mkdir(parents=True)
                _log.warning("The folder %s was deleted while a run wrote to it. It is made again.", self)
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
                f"Another run is at work in {str(self)!r}. Expected one run in a folder. Wait for it, or pass another "
                "folder."
            ) from error
        except OSError as error:  # some network file systems have no locks
            _log.warning("%s cannot be locked (%s): a second run in it would not be noticed.", self._lock_path, error)

    def is_held(self) -> bool:
        """Return True if the path still leads to the folder that this process locked."""
        return self.is_there() and self._lock is not None and _is(self._lock_path, self._lock.fileno())

    def _is_elsewhere(self) -> bool:
        """Return True if the folder was moved, not deleted: its lock still has a name."""
        try:
            return self._lock is not None and os.fstat(self._lock.fileno()).st_nlink > 0
        except OSError:  # NFS, of a file that another machine deleted
            return False

    def is_there(self) -> bool:
        """Return True if the path still leads to the folder that this process locked, be it released by now."""
        return self._folder is not None and _is(self._directory, self._folder)

    @contextlib.contextmanager
    def opened(self) -> Iterator[pathlib.Path]:
        """Give a path to the held folder that stays valid where the folder is moved, so that no write goes astray.

        Raises:
          OSError: if the folder is not held, or cannot be opened.
        """
        # Opened anew: the path may lead through another mount by now, such as one that is read-only.
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            if self._lock is None or self._folder is None or not os.path.samestat(os.fstat(descriptor), self._folder):
                raise FileNotFoundError(f"{str(self)!r} is not the folder any more that this run locked")
            anchor = pathlib.Path(f"/proc/self/fd/{descriptor}")
            yield anchor if anchor.is_dir() else self._directory
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Leave the folder to others."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __str__(self) -> str:
        return str(self._named)


def _is(path: pathlib.Path, expected: os.stat_result | int) -> bool:
    """Return True if the path leads to this file or folder, or open file; False also where it cannot be looked at."""
    try:
        return os.path.samestat(path.stat(), os.fstat(expected) if isinstance(expected, int) else expected)
    except OSError:
        return False


# A lock belongs to the open file, which a forked child shares: it would stay locked until the last child ends. A
# producer of batches can outlive a run that was killed.
_held: weakref.WeakSet[HeldFolder] = weakref.WeakSet()
_guard = threading.Lock()


def _let_go() -> None:
    for folder in _held:
        folder.release()
    _guard.release()


os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_let_go)
