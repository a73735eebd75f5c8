"""The format of one checkpoint on disk: how it is written whole, and checked when it is read.

A checkpoint is written under another name, flushed, and renamed to its number; then its facts get their name, which
makes it complete. Files can be damaged later, so the facts hold checksums of themselves and of the arrays.

Orbax writes all arrays as one. For many small arrays Orbax takes as long as a training step, and it reports only the
first array that fails.
"""

import json
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from resfit.errors import CheckpointError
from resfit.trainer.checkpoint import files
from resfit.trainer.checkpoint.files import ARRAYS, FACTS, UNFINISHED
from resfit.trainer.checkpoint.packing import pack, unpack
from resfit.trainer.checkpoint.saved_run import SavedRun

FORMAT = 2  # 1: the states of callbacks are plain JSON


class LaterFormatError(Exception):
    """An undamaged checkpoint that only a later version of resfit can read."""


def separate(saved: SavedRun) -> tuple[dict[str, np.ndarray], Any]:
    """Return all arrays of a run, and its facts as JSON values that refer to arrays by name.

    Raises:
      CheckpointError: if the facts hold something that is neither plain nor an array of numbers.
    """
    arrays = dict(saved.arrays)

    def set_aside(value: Any) -> dict[str, str]:
        name, array = f"fact/{len(arrays)}", np.array(value)
        if array.dtype.hasobject:
            raise CheckpointError(
                f"A {type(value).__name__} cannot be saved: {value!r:.100}. Expected dicts, lists, plain values and "
                "arrays of numbers. Let every state_dict return only those."
            )
        arrays[name] = array
        return {"__array__": name}

    return arrays, json.loads(json.dumps(saved.facts, default=set_aside))


def _join(arrays: Mapping[str, np.ndarray], facts: Any) -> SavedRun:
    """Undo `separate`."""

    def put_back(value: dict[str, Any]) -> Any:
        return arrays[value["__array__"]] if "__array__" in value else value

    joined = json.loads(json.dumps(facts), object_hook=put_back)
    return SavedRun({name: array for name, array in arrays.items() if not name.startswith("fact/")}, joined)


def write(directory: pathlib.Path, step: int, arrays: Mapping[str, np.ndarray], facts: Any) -> None:
    """Write a checkpoint under a temporary name, flush it to the disk, and rename it.

    Args:
      directory: of the checkpoints.
      step: the number of the checkpoint.
      arrays: see `separate`.
      facts: see `separate`.

    Raises:
      OSError: if the checkpoint cannot be written.
    """
    import orbax.checkpoint as ocp

    packed, index = pack(arrays)
    unsynced, folder = files.free_path(directory, f"{step}.unsynced"), directory / str(step)
    if os.path.lexists(folder):  # a rename would replace an empty folder
        raise FileExistsError(f"{folder.name!r} exists already and was not written by this run")
    unsynced.mkdir()
    (unsynced / UNFINISHED).open("xb").close()  # marks the folder as one of resfit
    with _orbax() as writer:
        writer.save(unsynced / ARRAYS, ocp.args.PyTreeSave({"content": packed}))
    content = {
        "format": FORMAT, "step": step, "facts": facts, "arrays": index, "arrays_checksum": checksum(packed),
        "files": files.contents_of(unsynced),
    }  # fmt: skip
    (unsynced / UNFINISHED).write_bytes(to_bytes({**content, "checksum": checksum(to_bytes(content))}))
    _publish(unsynced, folder)


def _publish(unsynced: pathlib.Path, folder: pathlib.Path) -> None:
    """Flush a written checkpoint, and give it its name."""
    for inside, _, names in os.walk(unsynced):
        for path in (inside, *(os.path.join(inside, name) for name in names)):
            _flush(path)
    unsynced.rename(folder)
    _flush(folder.parent)
    (folder / UNFINISHED).rename(folder / FACTS)
    _flush(folder)


def read_run(folder: pathlib.Path) -> SavedRun:
    """Read a checkpoint.

    Raises:
      Exception: of many kinds, if the checkpoint is damaged.
    """
    import orbax.checkpoint as ocp

    content = _facts(folder)
    with _orbax() as reader:
        host = {"content": ocp.RestoreArgs(restore_type=np.ndarray)}
        packed = reader.restore(folder / ARRAYS, ocp.args.PyTreeRestore(restore_args=host))["content"]
    if checksum(packed) != content["arrays_checksum"]:
        raise CheckpointError("its arrays differ from those that were written")
    return _join(unpack(packed, content["arrays"]), content["facts"])


def own_facts(folder: pathlib.Path) -> dict[str, Any] | None:
    """Read the facts of a checkpoint; return None unless they prove that resfit wrote the checkpoint here."""
    if folder.is_symlink():
        return None
    try:
        return _facts(folder)
    except Exception:  # noqa: BLE001  # a damaged file can raise anything
        return None


def _facts(folder: pathlib.Path) -> dict[str, Any]:
    """Read the facts of a checkpoint.

    Raises:
      Exception: of many kinds, if the facts are damaged, belong to another checkpoint, or have a later format.
    """
    content: dict[str, Any] = json.loads((folder / FACTS).read_bytes())
    if content.pop("checksum", None) != checksum(to_bytes(content)):
        raise CheckpointError("its facts differ from those that were written")
    if content["format"] > FORMAT:
        raise LaterFormatError(content["format"])
    step = content.get("step", files.number_of(folder))  # missing in checkpoints of earlier versions
    if step != files.number_of(folder):
        raise CheckpointError(f"it is a copy of checkpoint {step}. Rename it to {step} to resume from it")
    return content


def checksum(content: Any) -> int:
    """Return the CRC-32 of a buffer."""
    return zlib.crc32(content)


def to_bytes(content: Mapping[str, Any]) -> bytes:
    """Return JSON values as text with sorted keys, the form that the checksum covers."""
    return json.dumps(content, sort_keys=True).encode()


def _flush(path: str | os.PathLike[str]) -> None:
    """Bring a file, or the names in a folder, to the disk, so that a power cut loses nothing."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _orbax() -> Any:
    """Return a checkpointer for this process alone: every process holds the whole state of a run."""
    import orbax.checkpoint as ocp

    alone = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        here = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"resfit_{here}"
        )
    # With several items or in the background, Orbax waits five minutes after a failure.
    handler: Any = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)
