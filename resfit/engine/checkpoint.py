"""A folder of checkpoints of one run: written by Orbax in the background, whole or not at all, checked when read.

Whatever has a checkpoint's name, a number, is complete and on the disk: it was written under another name, flushed, and
renamed. Nobody can know what becomes of files afterwards. So checksums are kept beside the content, and a checkpoint
that cannot be read, or does not hold what was written, is passed over for the one before it.

A thread of this folder does all the work but the copying. Orbax gets all arrays as one: by itself it takes as long for
many small ones as a step of training takes, and it only tells of the first one that fails; the others it leaves behind,
which Python complains about later, out of nowhere.
"""

import concurrent.futures
import contextlib
import fcntl
import json
import logging
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import IO, Any, NamedTuple

import jax
import numpy as np

from resfit.engine.packing import pack, unpack
from resfit.errors import CheckpointError

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


class Checkpoints:
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
        self._directory, self._named = directory.absolute(), directory
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "resfit-checkpoint")
        self._writing: concurrent.futures.Future[None] | None = None
        self._lock: IO[str] | None = None
        self._keep: Callable[[list[int]], Collection[int]] | None = None
        self.unreadable: set[int] = set()
        if not writes:
            return
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._take()
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(
                f"Checkpoints cannot be written to {str(directory)!r}: {error}. Expected a folder that can be made and "
                "written to."
            ) from error

    def _take(self) -> None:
        """Keeps others out of the folder; again where it was made again."""
        path = self._directory / ".lock"
        if self._lock is not None and path.exists():
            return
        lock = path.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise CheckpointError(
                f"Another run is at work in {str(self._named)!r}. Expected one run in a folder. Wait for it, or "
                "pass another folder."
            ) from error
        except OSError as error:  # some network file systems have no locks
            _log.warning("%s cannot be locked (%s): a second run in it would not be noticed.", path, error)
        if self._lock is not None:
            self._lock.close()
        self._lock = lock

    @property
    def steps(self) -> list[int]:
        """The numbers of the complete checkpoints, from the oldest on.

        Raises:
          CheckpointError: if the folder cannot be looked into.
        """
        try:
            return sorted(
                int(path.name) for path in self._directory.iterdir() if path.name.isdecimal() and path.is_dir()
            )
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"The folder of checkpoints cannot be read: {error}.") from error

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
        with self._failures(f"The checkpoint of step {step} could not be written"):
            self._directory.mkdir(parents=True, exist_ok=True)
            self._take()
        self._keep = keep
        self._writing = self._writer.submit(self._write, step, arrays, facts)

    def _write(self, step: int, arrays: dict[str, np.ndarray], facts: Any) -> None:
        _write(self._directory, step, arrays, facts)
        self._delete(but=step)

    def _delete(self, but: int | None = None) -> None:
        """Deletes old ones; one that was written just now does not count yet: the run may have to go back before it."""
        if self._keep is None:
            return
        complete = [number for number in self.steps if number not in self.unreadable and number != but]
        for old in sorted(set(complete) - set(self._keep(complete))):
            path, going = self._directory / str(old), self._directory / f"{old}.deleted"
            try:
                path.rename(going)  # what is half deleted has no checkpoint's name
                shutil.rmtree(going)
            except FileNotFoundError:  # somebody else did
                continue
            except OSError as error:
                raise CheckpointError(f"The old checkpoint {str(path)!r} cannot be deleted: {error}.") from error

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
            self._delete()
        finally:
            self._writer.shutdown()
            if self._lock is not None:
                self._lock.close()

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
        content = json.loads((folder / "facts.json").read_bytes())
        if content.pop("checksum", None) != _checksum(_text(content)):
            raise CheckpointError("its facts are not those that were written")
        if content["format"] > FORMAT:
            raise _LaterFormatError(content["format"])
        with _orbax() as reader:
            host = {"content": ocp.RestoreArgs(restore_type=np.ndarray)}
            packed = reader.restore(folder / "arrays", ocp.args.PyTreeRestore(restore_args=host))["content"]
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


def _write(directory: pathlib.Path, step: int, arrays: dict[str, np.ndarray], facts: Any) -> None:
    """Writes a checkpoint under another name, brings it to the disk, and gives it its own."""
    import orbax.checkpoint as ocp

    for left in directory.iterdir():  # by a process that was killed, or on a full disk
        if left.name.partition(".")[0].isdecimal() and "." in left.name:
            try:
                shutil.rmtree(left)
            except OSError as error:
                _log.warning("%r, left of a checkpoint, cannot be deleted: %s.", str(left), error)
    packed, index = pack(arrays)
    content = {"format": FORMAT, "facts": facts, "arrays": index, "arrays_checksum": _checksum(packed)}
    unsynced = directory / f"{step}.unsynced"
    unsynced.mkdir()
    (unsynced / "facts.json").write_bytes(_text({**content, "checksum": _checksum(_text(content))}))
    with _orbax() as writer:
        writer.save(unsynced / "arrays", ocp.args.PyTreeSave({"content": packed}))
    for folder, _, files in os.walk(unsynced):
        for path in (folder, *(os.path.join(folder, file) for file in files)):
            _flush(path)
    unsynced.rename(directory / str(step))
    _flush(directory)


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
