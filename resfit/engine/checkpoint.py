"""A folder of checkpoints of one run, kept by Orbax: written in the background, whole or not at all, checked when read.

Orbax writes into a temporary folder and renames it, so whatever has a checkpoint's name is complete. It cannot know
what becomes of files afterwards. So every array's checksum is kept beside it, and a checkpoint that cannot be read, or
does not hold what was written, is passed over for the one before it.
"""

import contextlib
import fcntl
import json
import logging
import pathlib
import shutil
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import IO, Any, NamedTuple

import jax
import numpy as np

from resfit.errors import CheckpointError

_log = logging.getLogger("resfit")

FORMAT = 1


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

    Raises:
      CheckpointError: if it cannot be made or written to, or another run is at work in it.
    """

    def __init__(self, directory: pathlib.Path, *, writes: bool = True) -> None:
        self._directory = directory.absolute()
        self._manager: Any = None
        self._lock: IO[str] | None = None
        if not writes:
            return
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            lock = self._lock = (self._directory / ".lock").open("w")
        except OSError as error:
            raise CheckpointError(
                f"Checkpoints cannot be written to {str(directory)!r}: {error}. Expected a folder that can be made and "
                "written to."
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise CheckpointError(
                f"Another run is at work in {str(directory)!r}. Expected one run in a folder. Wait for it, or pass "
                "another folder."
            ) from error

    @property
    def steps(self) -> list[int]:
        """The numbers of the complete checkpoints, from the oldest on."""
        names = (path.name for path in self._directory.iterdir() if path.is_dir()) if self._directory.is_dir() else ()
        return sorted(int(name) for name in names if name.isdigit())

    def save(self, step: int, saved: Saved) -> None:
        """Begins to write, once what was begun before is written.

        Args:
          step: its number, larger than those before.
          saved: what nobody writes to any more.

        Raises:
          CheckpointError: if it cannot be written, or the one before could not.
        """
        import orbax.checkpoint as ocp

        arrays = dict(saved.arrays)

        def set_aside(value: Any) -> dict[str, str]:
            name = f"fact/{len(arrays)}"
            arrays[name] = np.array(value)
            return {"__array__": name}

        facts = json.loads(json.dumps(saved.facts, default=set_aside))
        empty = [name for name, array in arrays.items() if not array.size]  # Orbax refuses them
        content = {
            "format": FORMAT,
            "facts": facts,
            "empty": {name: [str(arrays[name].dtype), list(arrays.pop(name).shape)] for name in empty},
            "checksums": {name: _checksum(array) for name, array in arrays.items()},
        }
        with self._failures(f"The checkpoint of step {step} could not be written"):
            self.wait()
            self._directory.mkdir(parents=True, exist_ok=True)
            self._open().save(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.PyTreeSave(arrays),
                    facts=ocp.args.JsonSave({**content, "checksum": _checksum_of(content)}),
                ),
                force=True,
            )

    def keep(self, steps: Collection[int]) -> None:
        """Deletes all complete checkpoints but these."""
        for step in set(self.steps) - set(steps):
            shutil.rmtree(self._directory / str(step), ignore_errors=True)

    def wait(self) -> None:
        """Returns once all is written.

        Raises:
          CheckpointError: if it could not be.
        """
        if self._manager is not None:
            with self._failures("A checkpoint could not be written"):
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Writes what is left, and leaves the folder to others."""
        try:
            if self._manager is not None:
                with self._failures("The last checkpoint could not be written"):
                    self._manager.close()
        finally:
            self._manager = None
            if self._lock is not None:
                self._lock.close()

    def newest(self, accept: Callable[[Saved], bool] = lambda _: True) -> tuple[int, Saved] | None:
        """The newest checkpoint that is whole, and its step; later ones that are not are named in a warning.

        Args:
          accept: whether it will do; the one before is looked at otherwise.

        Raises:
          CheckpointError: if there are checkpoints, and none that can be read.
        """
        readable = False
        for step in reversed(self.steps):
            try:
                saved = self.read(step)
                readable = True
                if accept(saved):
                    return step, saved
            except Exception as error:  # noqa: BLE001  # whatever a damaged file makes its reader say
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

        folder, alone = self._directory / str(step), _alone()
        handler: Any = ocp.JsonCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
            content = reader.restore(folder / "facts")
        if content.pop("checksum", None) != _checksum_of(content):
            raise CheckpointError("its facts are not those that were written")
        if content["format"] > FORMAT:
            raise CheckpointError(f"it has format {content['format']}, of a later resfit; this one knows {FORMAT}")
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
            host = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in content["checksums"]}
            arrays = reader.restore(folder / "arrays", ocp.args.PyTreeRestore(restore_args=host))
        arrays |= {name: np.zeros(shape, dtype) for name, (dtype, shape) in content["empty"].items()}
        wrong = sorted(name for name, checksum in content["checksums"].items() if _checksum(arrays[name]) != checksum)
        if wrong:
            raise CheckpointError(f"the arrays {wrong[:3]} are not those that were written")

        def put_back(value: dict[str, Any]) -> Any:
            return arrays[value["__array__"]] if "__array__" in value else value

        facts = json.loads(json.dumps(content["facts"]), object_hook=put_back)
        return Saved({name: array for name, array in arrays.items() if not name.startswith("fact/")}, facts)

    def _open(self) -> Any:
        import orbax.checkpoint as ocp

        if self._manager is None:
            options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=_alone())
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        return self._manager

    @contextlib.contextmanager
    def _failures(self, what: str) -> Any:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:  # Orbax and TensorStore raise each of them
            self._manager = None  # it would raise the same again; the next one begins with what is there
            raise CheckpointError(
                f"{what} to {str(self._directory)!r}: {str(error)[:300]}. The ones before it are as they were. Is the "
                "disk full, or the folder gone or read-only?"
            ) from error


def _alone() -> Any:
    """Orbax's word for that this process reads and writes by itself: what a run is, every process holds whole."""
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    here = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"resfit_{here}"
    )


def _checksum(array: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(jax.device_get(array)).reshape(-1).view(np.uint8).data)


def _checksum_of(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
