"""What `fit(resume=...)` needs: the folder that a `Checkpoint` names, and what must be the same in both runs."""

import importlib.metadata
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from resfit.callbacks import Callback, Checkpoint
from resfit.data import Batches
from resfit.data.batches import description_of
from resfit.errors import ResumeError
from resfit.trainer.checkpoint.manager import Keeper
from resfit.trainer.checkpoint.store import Checkpoints
from resfit.trainer.multihost import Processes
from resfit.trainer.placement import Placement
from resfit.trainer.run_state import RunState

_PACKAGES = ("resfit", "jax", "jaxlib", "flax", "optax", "numpy")


def keeper(
    callbacks: Sequence[Callback],
    resume: bool | str,
    fingerprint: Mapping[str, Any],
    data: Mapping[str, Batches | None],
    state: RunState,
    placement: Placement,
    processes: Processes,
) -> Keeper | None:
    """What saves the run and brings it back; None if no callback says where.

    Args:
      callbacks: of the fit.
      resume: its argument.
      fingerprint: how the run was set up.
      data: what it reads, by name; looked at only where the run is saved.
      state: of the run.
      placement: of the run.
      processes: of the run.

    Raises:
      ResumeError: if it is not clear where to save, or the folder holds a run that was not asked for.
      CheckpointError: if the folder cannot be used.
    """
    if resume not in (True, False, "inexact"):
        raise ResumeError(f"Expected resume to be True, False or 'inexact', got {resume!r}.")
    found = [callback for callback in callbacks if isinstance(callback, Checkpoint)]
    if not found and resume:
        raise ResumeError(
            f"fit got resume={resume!r} and no Checkpoint callback, so there is nowhere to look. Expected "
            "callbacks=[resfit.callbacks.Checkpoint(folder)], as in the run that is to go on."
        )
    if not found:
        return None
    if len(found) > 1:
        raise ResumeError(f"fit got {len(found)} Checkpoint callbacks. Expected one: a run has one folder.")
    (callback,) = found
    whole = {
        **fingerprint,
        **{name: None if one is None else described(one) for name, one in data.items()},
        "devices": len(placement.devices),
        "processes": placement.processes,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    checkpoints = Checkpoints(callback.directory, writes=processes.shard[0] == 0)
    if checkpoints.steps and not resume:
        checkpoints.close()
        raise ResumeError(
            f"The folder {str(callback.directory)!r} holds checkpoints of a run. Expected an empty one. Pass "
            "resume=True to go on with that run, or another folder."
        )
    return Keeper(checkpoints, callback.keep, whole, state, placement, processes)


def described(data: Batches) -> dict[str, Any]:
    """What can be told of a data set without reading it: JSON values."""
    labels = b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(data.labels))
    return {
        "kind": type(data).__name__,
        "examples": data.examples,
        "labels": zlib.crc32(labels),
        **description_of(data),
    }
