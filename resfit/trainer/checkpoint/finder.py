"""The search for the checkpoint from which a run continues: after a stop, or at a rollback."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from resfit.errors import NonFiniteLossError, ResumeError
from resfit.trainer.checkpoint.fingerprint import differences
from resfit.trainer.checkpoint.saved_run import Progress, SavedRun
from resfit.trainer.checkpoint.store import CheckpointStore
from resfit.trainer.devices.multihost import Processes

_log = logging.getLogger("resfit")


class FoundRun(NamedTuple):
    """A saved run that can resume.

    Attributes:
      saved: the checkpoint.
      trains: True if something remains to be trained.
      differs: the names of the settings that differ; none at an exact resume.
    """

    saved: SavedRun
    trains: bool
    differs: frozenset[str]


class CheckpointFinder:
    """Finds the checkpoint from which all processes continue.

    Args:
      store: the checkpoints.
      processes: of the run; the first one searches.
      fingerprint: of the run.
    """

    def __init__(self, store: CheckpointStore, processes: Processes, fingerprint: Mapping[str, Any]) -> None:
        self._store, self._processes, self._fingerprint = store, processes, fingerprint
        self._searches = processes.shard[0] == 0

    def to_resume(self, *, exact: bool) -> FoundRun | None:
        """Return the newest run that can resume; None if there is no checkpoint.

        Args:
          exact: True to refuse a run with other settings.

        Raises:
          ResumeError: if an exact resume is impossible; the message names all settings that differ.
        """
        found = self._newest()
        if found is None:
            return None
        differs = differences(found.facts["fingerprint"], self._fingerprint, found.position)
        if differs and exact:
            raise ResumeError(
                f"The run in this folder has other settings: {'; '.join(differs.values())}. Expected equal settings, "
                "so that the resumed run ends where an uninterrupted run ends. Restore the settings, pass another "
                "folder, or pass resume='inexact' to resume with the differences."
            )
        found = self._before_end(found, exact=exact)
        trains = self._trains(found.progress)
        if differs:
            told = "The run resumes inexactly" if trains else "The run is finished and trains no further"
            _log.warning("%s: it was saved with other %s.", told, ", ".join(differs))
        return FoundRun(found, trains, frozenset(differs))

    def _trains(self, progress: Progress) -> bool:
        return not progress.finished and (progress.epoch, progress.batch) <= (self._fingerprint["epochs"], 0)

    def _before_end(self, found: SavedRun, *, exact: bool) -> SavedRun:
        """Return the checkpoint before the end of a finished run that gets more epochs; otherwise `found`.

        Callbacks such as `EarlyStopping` may change the state at the end of a run, and an uninterrupted run of more
        epochs does not reach that end.

        Raises:
          ResumeError: if an exact resume needs a checkpoint from before the end, and there is none.
        """
        progress, epochs = found.progress, self._fingerprint["epochs"]
        if not progress.finished or epochs <= found.facts["fingerprint"]["epochs"]:
            return found
        before = self._newest(lambda saved: not saved.facts["progress"]["finished"])
        if before is None and exact:
            raise ResumeError(
                f"The run in this folder finished after {progress.epoch} epochs. An exact resume to {epochs} epochs "
                "expects a checkpoint from before the end, and none is left. Pass resume='inexact' to resume from the "
                "end, or pass another folder."
            )
        before = before or found
        if exact and before.facts["progress"]["stopping"]:
            _log.warning(
                "A callback stopped the run in this folder after %d epochs, and would stop a run of %d epochs there "
                "too. Nothing is trained. Pass resume='inexact' to train further.", progress.epoch, epochs,
            )  # fmt: skip
            return found
        trains_on = before.facts["progress"] | {"stopping": False, "finished": False}
        return before._replace(facts=before.facts | {"progress": trains_on})

    def to_roll_back(self, bad: tuple[int, int] | None) -> SavedRun:
        """Return the newest checkpoint in which all values are finite, from before `bad` if there is one.

        Args:
          bad: (epoch, batch) of the step that failed, or None.

        Raises:
          NonFiniteLossError: if no checkpoint holds only finite values.
        """
        # The state before a bad step can be finite and still unusable, so an earlier checkpoint is better.
        found = self._newest(lambda saved: saved.is_regular() and (bad is None or saved.position < bad))
        found = found or self._newest(SavedRun.is_finite)
        if found is None:
            raise NonFiniteLossError(
                "The loss is not finite, and no earlier checkpoint exists to return to. Expected at least one with "
                "finite values. Save more often (Checkpoint(every=...)), lower the learning rate, or look for NaN in "
                "the inputs."
            )
        return found

    def _newest(self, accept: Callable[[SavedRun], bool] = lambda _: True) -> SavedRun | None:
        """Return the newest readable and accepted checkpoint of the first process, in every process."""
        newest = self._store.newest(accept) if self._searches else None
        number = self._processes.of_first(-1 if newest is None else newest[0])
        if number < 0:
            return None
        return (self._store.read(number) if newest is None else newest[1]).upgraded()
