"""A folder with the checkpoints of one run: written in the background, deleted when old, skipped when damaged.

A thread of this folder does all work except copying. Nothing is deleted except what `checkpoint.files` proves to be
written by resfit. Nothing is written or deleted in a folder that `FolderLock` does not hold.
"""

import concurrent.futures
import logging
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from resfit.errors import CheckpointError
from resfit.trainer.checkpoint import disk_format, files
from resfit.trainer.checkpoint.files import FACTS, UNFINISHED
from resfit.trainer.checkpoint.lock import FolderLock
from resfit.trainer.checkpoint.saved_run import SavedRun

_log = logging.getLogger("resfit")


class CheckpointStore:
    """The checkpoints of one run, which one process writes and no other run may write to.

    Args:
      directory: created if it is missing.
      writes: True in the process that writes; other processes of the same training only read.

    Attributes:
      named: the directory as it was given.
      unreadable: the numbers of the checkpoints that `newest` skipped.

    Raises:
      CheckpointError: if the directory cannot be created or written to, or another run writes to it.
    """

    def __init__(self, directory: pathlib.Path, *, writes: bool = True) -> None:
        self.named = directory
        self._directory = directory.absolute()
        self._folder = FolderLock(self._directory, directory) if writes else None
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "resfit-checkpoint")
        self._writing: concurrent.futures.Future[None] | None = None
        self._keep: Callable[[list[int]], Collection[int]] | None = None
        self._ours: dict[int, bool] = {}
        self._warned: set[str] = set()  # subjects of warnings that are given once
        self.unreadable: set[int] = set()
        if self._folder is None:
            return
        try:
            self._folder.take()
            with self._folder.opened() as here:
                self._clear(here)
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(
                f"Checkpoints cannot be written to {str(directory)!r}: {error}. Expected a folder that can be made and "
                "written to. Check the path and its permissions."
            ) from error

    @property
    def steps(self) -> list[int]:
        """The numbers of the complete checkpoints in increasing order; empty if this run lost the folder.

        Raises:
          CheckpointError: if the folder cannot be read.
        """
        return sorted(number for number, path in self._numbered() if files.is_checkpoint(path))

    @property
    def next_step(self) -> int:
        """The first number that is larger than all numbers that are names in the folder."""
        return max((number for number, _ in self._numbered()), default=-1) + 1

    def _numbered(self) -> list[tuple[int, pathlib.Path]]:
        if self._folder is not None and not self._folder.is_there():
            return []
        try:
            numbers = [(files.number_of(path), path) for path in self._directory.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"The folder of checkpoints {str(self._directory)!r} cannot be read: {error}. Expected a readable "
                "folder. Check its permissions."
            ) from error
        return [(number, path) for number, path in numbers if number is not None]

    def save(self, step: int, saved: SavedRun, keep: Callable[[list[int]], Collection[int]] | None = None) -> None:
        """Begin to write a checkpoint once the previous one is written; then delete old ones.

        Args:
          step: the number of the checkpoint, larger than the previous ones.
          saved: the contents, which must not be changed any more.
          keep: takes the numbers of all checkpoints and returns those to keep; None to keep all. Unreadable
            checkpoints are not counted and not deleted.

        Raises:
          CheckpointError: if this checkpoint or the previous one cannot be written.
        """
        self.wait()
        arrays, facts = disk_format.separate(saved)
        if not self._takes():
            return
        self._keep = keep
        self._writing = self._writer.submit(self._write, step, arrays, facts)

    def _takes(self) -> bool:
        """Return True if this run holds the folder; raise the first time it does not.

        Raises:
          CheckpointError: the first time.
        """
        if self._folder is None:
            raise CheckpointError("A checkpoint could not be written: this process only reads checkpoints.")
        try:
            self._folder.take()
        except (OSError, CheckpointError) as error:
            if self._first_time("lost"):
                raise CheckpointError(
                    f"A checkpoint could not be written to {str(self._directory)!r}: the folder of this run was moved "
                    f"or replaced ({str(error).rstrip('.')}). resfit writes nothing to its replacement, and does not "
                    "repeat this message. Move the folder back; the next checkpoint is then written to it."
                ) from error
            return False
        self._warned.discard("lost")
        return True

    def _first_time(self, subject: str) -> bool:
        first = subject not in self._warned
        self._warned.add(subject)
        return first

    def _write(self, step: int, arrays: Mapping[str, np.ndarray], facts: Any) -> None:
        if self._folder is None or not self._folder.is_held():
            return  # the next save reports the loss
        with self._folder.opened() as here:
            self._clear(here)
            disk_format.write(here, step, arrays, facts)
            self._ours[step] = True
            self._delete(here, but=step)

    def _clear(self, here: pathlib.Path) -> None:
        """Delete what a killed process or a failed save left; warn once of similar folders, which are kept."""
        for path in here.iterdir():
            try:
                if files.is_unfinished(path):
                    files.remove(path)
                elif files.has_name_of_work(path) and self._first_time(path.name):
                    _log.warning(
                        "%s is kept: it may be yours, or a remainder of an earlier version of resfit. Delete it if you "
                        "do not need it.", self._directory / path.name,
                    )  # fmt: skip
            except OSError as error:
                if self._first_time(path.name):
                    _log.warning("%s, a remainder, cannot be deleted: %s.", self._directory / path.name, error)

    def _delete(self, here: pathlib.Path, but: int | None = None) -> None:
        """Delete old checkpoints. The one just written does not count: a rollback may need an older one."""
        if self._keep is None:
            return
        complete = [number for number in self.steps if number not in self.unreadable and number != but]
        complete = [number for number in complete if self._is_ours(here, number)]
        for old in sorted(set(complete) - set(self._keep(complete))):
            try:
                self._delete_one(here, old)
            except FileNotFoundError:  # another process deleted it
                continue
            except OSError as error:
                path = self._directory / str(old)
                raise CheckpointError(f"The old checkpoint {str(path)!r} cannot be deleted: {error}.") from error

    def _is_ours(self, here: pathlib.Path, number: int) -> bool:
        """Return True if resfit wrote the checkpoint under this number; others are neither counted nor deleted."""
        if number not in self._ours:
            self._ours[number] = disk_format.own_facts(here / str(number)) is not None
            if not self._ours[number]:
                _log.warning(
                    "%s is kept, and not counted among the checkpoints: it is damaged, a copy or a link.",
                    self._directory / str(number),
                )
        return self._ours[number]

    def _delete_one(self, here: pathlib.Path, number: int) -> None:
        folder = here / str(number)
        facts = disk_format.own_facts(folder)
        if facts is None or (others := files.unknown_files(folder, facts)):
            if self._first_time(folder.name):
                reason = (
                    "it was changed" if facts is None else f"it holds files that resfit did not write: {others[:3]}"
                )
                _log.warning("The old checkpoint %s is kept: %s.", self._directory / folder.name, reason)
            return
        (folder / FACTS).rename(folder / UNFINISHED)
        folder.rename(going := files.free_path(here, f"{number}.deleted"))
        files.remove(going)

    def wait(self) -> None:
        """Wait until the checkpoint is written.

        Raises:
          CheckpointError: if it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except (OSError, ValueError, RuntimeError, MemoryError) as error:  # Orbax and TensorStore raise each of them
            raise CheckpointError(
                f"A checkpoint could not be written to {str(self._directory)!r}: {str(error)[:300]}. The earlier ones "
                "are unchanged. Check that the disk is not full and the folder exists and is writable."
            ) from error

    def close(self) -> None:
        """Finish writing, delete old checkpoints, and release the folder.

        Raises:
          CheckpointError: if a checkpoint cannot be written or deleted.
        """
        try:
            self.wait()
            if self._folder is not None and self._folder.is_held():
                with self._folder.opened() as here:
                    self._delete(here)
        except CheckpointError:
            raise
        except OSError as error:  # the folder was moved just now
            raise CheckpointError(f"Old checkpoints cannot be deleted: {error}.") from error
        finally:
            self._writer.shutdown()
            if self._folder is not None:
                self._folder.release()

    def newest(self, accept: Callable[[SavedRun], bool] = lambda _: True) -> tuple[int, SavedRun] | None:
        """Return the newest undamaged checkpoint and its number; warn of damaged ones after it.

        Args:
          accept: returns True for a checkpoint that can be used; older ones are tried otherwise.

        Raises:
          CheckpointError: if there are checkpoints and none is readable, or one has the format of a later version.
        """
        readable = False
        for step in reversed(self.steps):
            try:
                saved = self.read(step)
                readable = True
                if accept(saved):
                    return step, saved
            except disk_format.LaterFormatError as error:
                raise CheckpointError(
                    f"The checkpoint of step {step} in {str(self._directory)!r} has format {error.args[0]}, of a later "
                    f"version of resfit. Expected format {disk_format.FORMAT} or lower. Upgrade resfit, or pass "
                    "another folder."
                ) from error
            except Exception as error:  # noqa: BLE001  # a damaged file can raise anything
                self.unreadable.add(step)
                _log.warning(
                    "The checkpoint of step %d in %s is damaged and skipped: %s",
                    step, str(self._directory), str(error)[:300],
                )  # fmt: skip
        if self.steps and not readable:
            raise CheckpointError(
                f"None of the checkpoints {self.steps} in {str(self._directory)!r} can be read. Expected at least one. "
                "Restore the folder from a backup, or pass another folder."
            )
        return None

    def read(self, step: int) -> SavedRun:
        """Read one of the checkpoints.

        Raises:
          Exception: of many kinds, if the checkpoint is damaged.
        """
        return disk_format.read_run(self._directory / str(step))
