"""The contents of a checkpoint: the arrays of a run, and its facts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from resfit.data.states import packed, unpacked
from resfit.errors import CallbackError

# Callbacks that have another class name now than in earlier versions.
_RENAMED = {"_SeenInputs": "SeenData"}

_LOGS = ("validated", "logs")


class Progress(NamedTuple):
    """The progress of a `fit`: to the end of a batch and all its hooks, or to the end of an epoch.

    Attributes:
      epoch: the epoch that continues or begins next.
      batch: completed batches of this epoch; after the last one, its validation and end remain.
      steps: completed steps of this fit, including those before a resume.
      validated: values of the last validation inside this epoch.
      logs: of the previous epoch; on_train_end receives them if no other epoch ends.
      validating: True if a validation by steps is due before anything else.
      stopping: True if a stop was requested, so that this epoch is the last one.
      finished: True if nothing remains to be done.
    """

    epoch: int
    batch: int = 0
    steps: int = 0
    validated: Mapping[str, Any] = {}
    logs: Mapping[str, Any] = {}
    validating: bool = False
    stopping: bool = False
    finished: bool = False

    def packed(self) -> dict[str, Any]:
        """Return the fields for the facts of a checkpoint.

        Raises:
          CallbackError: if the logs hold something that a checkpoint cannot hold.
        """
        return _with_packed_logs(self._asdict())


class SavedRun(NamedTuple):
    """The contents of a checkpoint.

    Attributes:
      arrays: by name, on the host: `state/0`, ... and `sums/0`, ...
      facts: dicts, lists and plain values; NumPy arrays can be anywhere inside.
    """

    arrays: Mapping[str, np.ndarray]
    facts: dict[str, Any]

    def numbered(self, kind: str) -> list[np.ndarray]:
        """Return the arrays of a kind in order: `state/0`, `state/1`, ... for "state"."""
        count = sum(name.startswith(f"{kind}/") for name in self.arrays)
        return [self.arrays[f"{kind}/{i}"] for i in range(count)]

    @property
    def progress(self) -> Progress:
        """The progress of the run at this checkpoint."""
        fields = self.facts["progress"]
        return Progress(**fields | {name: unpacked(fields[name]) for name in _LOGS})

    @property
    def position(self) -> tuple[int, int]:
        """The epoch, and the number of its completed batches."""
        fields = self.facts["progress"]
        return fields["epoch"], fields["batch"]

    def is_finite(self) -> bool:
        """Return True if the run is unfinished and all values of its state are finite."""
        return not self.facts["progress"]["finished"] and all_finite(self.numbered("state"))

    def is_regular(self) -> bool:
        """Return True if a callback requested the checkpoint and a rollback can use it."""
        return self.facts["regular"] and self.is_finite()

    def upgraded(self) -> "SavedRun":
        """Return the checkpoint of an earlier version, whose states are plain JSON, in the present form."""
        facts = self.facts
        if "_SeenInputs" in facts.get("callback_states", {}):
            return self._replace(facts=facts | {"callback_states": _renamed(facts["callback_states"])})
        if "callback_states" in facts:
            return self
        states = _renamed({name: packed(state) for name, state in facts["callbacks"].items()})
        return self._replace(
            facts=facts | {"callback_states": states, "progress": _with_packed_logs(facts["progress"])}
        )


def all_finite(arrays: Sequence[np.ndarray]) -> bool:
    """Return True if no array of floats holds a value that is not finite."""
    floats = [array for array in arrays if jnp.issubdtype(array.dtype, jnp.inexact)]
    with np.errstate(all="ignore"):
        # A sum is much faster. A finite sum proves finite values; a sum that is not finite may have overflowed.
        return all(bool(np.isfinite(array.sum()) or np.isfinite(array).all()) for array in floats)


def _renamed(states: Mapping[str, Any]) -> dict[str, Any]:
    return {_RENAMED.get(name, name): state for name, state in states.items()}


def _with_packed_logs(progress: Mapping[str, Any]) -> dict[str, Any]:
    return {**progress, **{name: packed(dict(progress[name]), _log_error) for name in _LOGS}}


def _log_error(place: str, what: str) -> CallbackError:
    return CallbackError(
        f"The logs, at {place.removeprefix('state_dict()')}, hold {what}, which a checkpoint cannot hold. Expected "
        "numbers or arrays. Let callbacks add only those to the logs."
    )
