"""The fingerprint of a run: the settings, data and versions that must be equal to resume it."""

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
from resfit.trainer.checkpoint.manager import CheckpointManager
from resfit.trainer.checkpoint.store import CheckpointStore
from resfit.trainer.context import RunContext

_PACKAGES = ("resfit", "jax", "jaxlib", "flax", "optax", "numpy")


def manager_of(
    callbacks: Sequence[Callback],
    resume: bool | str,
    settings: Mapping[str, Any],
    data: Mapping[str, Batches | None],
    context: RunContext,
) -> CheckpointManager | None:
    """Return the manager that saves a run and restores it; None if no callback names a folder.

    Args:
      callbacks: of the fit.
      resume: its argument.
      settings: of `compile` and `fit`, by name: JSON values.
      data: of the run, by name; described only if the run is saved.
      context: of the run.

    Raises:
      ResumeError: if the folder is ambiguous, or holds a run and `resume` is False.
      CheckpointError: if the folder cannot be used.
    """
    found = [callback for callback in callbacks if isinstance(callback, Checkpoint)]
    if not found and resume:
        raise ResumeError(
            f"fit got resume={resume!r} and no Checkpoint callback, so there is nowhere to look. Expected "
            "callbacks=[resfit.callbacks.Checkpoint(folder)], as in the run that is to be resumed."
        )
    if not found:
        return None
    if len(found) > 1:
        raise ResumeError(f"fit got {len(found)} Checkpoint callbacks. Expected one: a run has one folder.")
    (callback,) = found
    placement, processes = context.placement, context.processes
    whole = {
        **settings,
        **{name: None if one is None else described(one) for name, one in data.items()},
        "devices": len(placement.devices),
        "processes": placement.processes,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    store = CheckpointStore(callback.directory, writes=processes.shard[0] == 0)
    if store.steps and not resume:
        store.close()
        raise ResumeError(
            f"The folder {str(callback.directory)!r} holds checkpoints of a run. Expected an empty one. Pass "
            "resume=True to resume that run, or another folder."
        )
    return CheckpointManager(store, callback.keep, whole, context.state, placement, processes)


def described(data: Batches) -> dict[str, Any]:
    """Describe a dataset without reading it, in JSON values."""
    labels = b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(data.labels))
    return {
        "kind": type(data).__name__,
        "examples": data.examples,
        "labels": zlib.crc32(labels),
        **description_of(data),
    }
