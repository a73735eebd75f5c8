"""A folder of checkpoints of one run: written by Orbax in the background, whole or not at all, checked when read.

A checkpoint is written under another name, flushed, and renamed to its number; then its facts get their name, which
makes it complete. Nobody can know what becomes of files afterwards. So checksums are kept beside the content, and a
checkpoint that cannot be read, or does not hold what was written, is passed over for the one before it. Nothing is
deleted but what `checkpoint_files` knows to be written by resfit, and nothing is written or deleted in a folder that is
not `HeldFolder`'s.

A thread of this folder does all the work but the copying. Orbax gets all arrays as one: by itself it takes as long for
many small ones as a step of training takes, and it only tells of the first one that fails; the others it leaves behind,
which Python complains about later, out of nowhere.
"""

import concurrent.futures
import contextlib
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from resfit.errors import CheckpointError
from resfit.trainer.checkpoint import files
from resfit.trainer.checkpoint.files import ARRAYS, FACTS, UNFINISHED
from resfit.trainer.checkpoint.lock import HeldFolder
from resfit.trainer.checkpoint.packing import pack, unpack

_log = logging.getLogger("resfit")

FORMAT = 2  # 1: what callbacks remember, as JSON alone gives it back


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      arrays: by name, on the host.
      facts: dicts, lists and plain values; NumPy arrays may stand anywhere among them.
    """

    arrays: Mapping[str, np.ndarray]
    facts: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run, which one process writes and no other run may write to.

    Args:
      directory: made if it is not there.
      writes: whether this process is the one; of several that train together, the others only read.

    Attributes:
      unreadable: the numbers of those that `newest` had to pass over.

    Raises:
      CheckpointError: if it cannot be made or written to, or another run is at work in it.
    """

    def __init__(self, directory: pathlib.Path, *, writes: bool = True) -> None:
        self._directory = directory.absolute()
        self._folder = HeldFolder(self._directory, directory) if writes else None
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "resfit-checkpoint")
        self._writing: concurrent.futures.Future[None] | None = None
        self._keep: Callable[[list[int]], Collection[int]] | None = None
        self._ours: dict[int, bool] = {}
        self._told: set[str] = set()  # what was said once
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
                "written to."
            ) from error

    @property
    def steps(self) -> list[int]:
        """The numbers of the complete checkpoints, from the oldest on; of a folder that this run lost, none.

        Raises:
          CheckpointError: if the folder cannot be looked into.
        """
        return sorted(number for number, path in self._numbered() if files.is_checkpoint(path))

    @property
    def next_step(self) -> int:
        """The first number that is larger than all in the folder, whatever has them as names."""
        return max((number for number, _ in self._numbered()), default=-1) + 1

    def _numbered(self) -> list[tuple[int, pathlib.Path]]:
        if self._folder is not None and not self._folder.is_there():
            return []
        try:
            numbers = [(files.number(path), path) for path in self._directory.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"The folder of checkpoints cannot be read: {error}.") from error
        return [(number, path) for number, path in numbers if number is not None]

    def save(self, step: int, saved: Saved, keep: Callable[[list[int]], Collection[int]] | None = None) -> None:
        """Begins to write, once what was begun before is written; then deletes old ones.

        Args:
          step: its number, larger than those before.
          saved: what nobody writes to any more.
          keep: given the numbers of all, which to keep; None for all. Those that could not be read neither count nor
            go.

        Raises:
          CheckpointError: if it cannot be written, or the one before could not.
        """
        self.wait()
        arrays = dict(saved.arrays)

        def set_aside(value: Any) -> dict[str, str]:
            name, array = f"fact/{len(arrays)}", np.array(value)
            if array.dtype.hasobject:
                raise CheckpointError(
                    f"A {type(value).__name__} cannot be saved: {value!r:.100}. Expected every state_dict to hold "
                    "dicts, lists, plain values and arrays of numbers."
                )
            arrays[name] = array
            return {"__array__": name}

        facts = json.loads(json.dumps(saved.facts, default=set_aside))
        if not self._takes():
            return
        self._keep = keep
        self._writing = self._writer.submit(self._write, step, arrays, facts)

    def _takes(self) -> bool:
        """Return True if the folder is this run's; say once if it is not."""
        if self._folder is None:
            raise CheckpointError("A checkpoint could not be written: this process only reads them.")
        try:
            self._folder.take()
        except (OSError, CheckpointError) as error:
            if self._first_time("lost"):
                raise CheckpointError(
                    f"A checkpoint could not be written to {str(self._directory)!r}: the folder that this run began in "
                    f"was moved away or replaced ({str(error).rstrip('.')}). Nothing is written to what is there now, "
                    "and this is not said again. Move the folder back, and the next checkpoint is written to it."
                ) from error
            return False
        self._told.discard("lost")
        return True

    def _first_time(self, what: str) -> bool:
        first = what not in self._told
        self._told.add(what)
        return first

    def _write(self, step: int, arrays: dict[str, np.ndarray], facts: Any) -> None:
        if self._folder is None or not self._folder.is_held():
            return  # the next save says so
        with self._folder.opened() as here:
            self._clear(here)
            _write(here, step, arrays, facts)
            self._ours[step] = True
            self._delete(here, but=step)

    def _clear(self, here: pathlib.Path) -> None:
        """Delete what a killed process or a failed save left, and say once what looks like that and is kept."""
        for path in here.iterdir():
            try:
                if files.is_unfinished(path):
                    files.remove(path)
                elif files.has_name_of_work(path) and self._first_time(path.name):
                    _log.warning(
                        "%s is kept: it may be yours, or left of a checkpoint by an earlier version of resfit. Delete "
                        "it if it is not needed.", self._directory / path.name,
                    )  # fmt: skip
            except OSError as error:
                if self._first_time(path.name):
                    _log.warning("%s, left of a checkpoint, cannot be deleted: %s.", self._directory / path.name, error)

    def _delete(self, here: pathlib.Path, but: int | None = None) -> None:
        """Delete old ones; one that was written just now does not count yet: the run may have to go back before it."""
        if self._keep is None:
            return
        complete = [number for number in self.steps if number not in self.unreadable and number != but]
        complete = [number for number in complete if self._is_ours(here, number)]
        for old in sorted(set(complete) - set(self._keep(complete))):
            try:
                self._delete_one(here, old)
            except FileNotFoundError:  # somebody else did
                continue
            except OSError as error:
                path = self._directory / str(old)
                raise CheckpointError(f"The old checkpoint {str(path)!r} cannot be deleted: {error}.") from error

    def _is_ours(self, here: pathlib.Path, number: int) -> bool:
        """Return True if a checkpoint is one that resfit wrote under this number; others neither count nor go."""
        if number not in self._ours:
            self._ours[number] = _own_facts(here / str(number)) is not None
            if not self._ours[number]:
                _log.warning(
                    "%s is kept, and not counted among the checkpoints: it is damaged, a copy or a link.",
                    self._directory / str(number),
                )
        return self._ours[number]

    def _delete_one(self, here: pathlib.Path, number: int) -> None:
        folder = here / str(number)
        facts = _own_facts(folder)
        if facts is None or (others := files.strangers(folder, facts)):
            if self._first_time(folder.name):
                held = "it was changed" if facts is None else f"resfit did not write all that it holds: {others[:3]}"
                _log.warning("The old checkpoint %s is kept: %s.", self._directory / folder.name, held)
            return
        (folder / FACTS).rename(folder / UNFINISHED)
        folder.rename(going := files.free(here, f"{number}.deleted"))
        files.remove(going)

    def wait(self) -> None:
        """Returns once all is written.

        Raises:
          CheckpointError: if it could not be.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            with self._failures("A checkpoint could not be written"):
                writing.result()

    def close(self) -> None:
        """Writes what is left, deletes old ones, and leaves the folder to others."""
        try:
            self.wait()
            if self._folder is not None and self._folder.is_held():
                with self._folder.opened() as here:
                    self._delete(here)
        except CheckpointError:
            raise
        except OSError as error:  # it was moved just now
            raise CheckpointError(f"Old checkpoints cannot be deleted: {error}.") from error
        finally:
            self._writer.shutdown()
            if self._folder is not None:
                self._folder.release()

    def newest(self, accept: Callable[[Saved], bool] = lambda _: True) -> tuple[int, Saved] | None:
        """The newest checkpoint that is whole, and its step; later ones that are not are named in a warning.

        Args:
          accept: whether it will do; the one before is looked at otherwise.

        Raises:
          CheckpointError: if there are checkpoints, and none that can be read; or it has the format of a later version.
        """
        readable = False
        for step in reversed(self.steps):
            try:
                saved = self.read(step)
                readable = True
                if accept(saved):
                    return step, saved
            except _LaterFormatError as error:
                raise CheckpointError(
                    f"The checkpoint of step {step} in {str(self._directory)!r} has format {error.args[0]}, of a later "
                    f"resfit; this one knows {FORMAT}. Upgrade resfit, or begin in another folder."
                ) from error
            except Exception as error:  # noqa: BLE001  # whatever a damaged file makes its reader say
                self.unreadable.add(step)
                _log.warning(
                    "The checkpoint of step %d in %s is damaged and passed over: %s",
                    step, str(self._directory), str(error)[:300],
                )  # fmt: skip
        if self.steps and not readable:
            raise CheckpointError(
                f"None of the checkpoints {self.steps} in {str(self._directory)!r} can be read. Expected at least one. "
                "Copy the folder back from where it is whole, or begin in another one."
            )
        return None

    def read(self, step: int) -> Saved:
        """One of the checkpoints.

        Raises:
          Exception: of many kinds, if it is damaged.
        """
        import orbax.checkpoint as ocp

        folder = self._directory / str(step)
        content = _facts(folder)
        with _orbax() as reader:
            host = {"content": ocp.RestoreArgs(restore_type=np.ndarray)}
            packed = reader.restore(folder / ARRAYS, ocp.args.PyTreeRestore(restore_args=host))["content"]
        if _checksum(packed) != content["arrays_checksum"]:
            raise CheckpointError("its arrays are not those that were written")
        arrays = unpack(packed, content["arrays"])

        def put_back(value: dict[str, Any]) -> Any:
            return arrays[value["__array__"]] if "__array__" in value else value

        facts = json.loads(json.dumps(content["facts"]), object_hook=put_back)
        return Saved({name: array for name, array in arrays.items() if not name.startswith("fact/")}, facts)

    @contextlib.contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError, MemoryError) as error:  # Orbax and TensorStore raise each of them
            raise CheckpointError(
                f"{what} to {str(self._directory)!r}: {str(error)[:300]}. The ones before it are as they were. Is the "
                "disk full, or the folder gone or read-only?"
            ) from error


class _LaterFormatError(Exception):
    """A checkpoint that is whole, and that only a later version can read."""


def _facts(folder: pathlib.Path) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Raises:
      Exception: of many kinds, if it is damaged, is not this checkpoint's, or is of a later version.
    """
    content: dict[str, Any] = json.loads((folder / FACTS).read_bytes())
    if content.pop("checksum", None) != _checksum(_text(content)):
        raise CheckpointError("its facts are not those that were written")
    if content["format"] > FORMAT:
        raise _LaterFormatError(content["format"])
    step = content.get("step", files.number(folder))  # not there in checkpoints of earlier versions
    if step != files.number(folder):
        raise CheckpointError(f"it is a copy of that of step {step}. Give it this name to go on from it")
    return content


def _own_facts(folder: pathlib.Path) -> dict[str, Any] | None:
    """What a checkpoint says of itself, or None if nobody knows that resfit wrote it here."""
    if folder.is_symlink():
        return None
    try:
        return _facts(folder)
    except Exception:  # noqa: BLE001  # whatever a damaged file makes its reader say
        return None


def _write(directory: pathlib.Path, step: int, arrays: dict[str, np.ndarray], facts: Any) -> None:
    """Write a checkpoint under another name, bring it to the disk, and give it its own."""
    import orbax.checkpoint as ocp

    packed, index = pack(arrays)
    unsynced, folder = files.free(directory, f"{step}.unsynced"), directory / str(step)
    if os.path.lexists(folder):  # a rename would take the place of an empty folder
        raise FileExistsError(f"There is a {folder.name} already, which this run did not write")
    unsynced.mkdir()
    (unsynced / UNFINISHED).open("xb").close()  # from here on it is known to be resfit's
    with _orbax() as writer:
        writer.save(unsynced / ARRAYS, ocp.args.PyTreeSave({"content": packed}))
    content = {
        "format": FORMAT, "step": step, "facts": facts, "arrays": index, "arrays_checksum": _checksum(packed),
        "files": files.listed(unsynced),
    }  # fmt: skip
    (unsynced / UNFINISHED).write_bytes(_text({**content, "checksum": _checksum(_text(content))}))
    for inside, _, names in os.walk(unsynced):
        for path in (inside, *(os.path.join(inside, name) for name in names)):
            _flush(path)
    unsynced.rename(folder)
    _flush(directory)
    (folder / UNFINISHED).rename(folder / FACTS)
    _flush(folder)


def _flush(path: str | os.PathLike[str]) -> None:
    """Brings a file, or the names in a folder, to the disk: a power cut takes nothing of it away."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _orbax() -> Any:
    """What reads and writes arrays, by this process alone: what a run is, every process holds whole."""
    import orbax.checkpoint as ocp

    alone = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        here = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"resfit_{here}"
        )
    # Together with other items or in the background, Orbax waits five minutes for what has failed.
    handler: Any = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _checksum(content: Any) -> int:
    return zlib.crc32(content)


def _text(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
