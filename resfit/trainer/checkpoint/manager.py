"""Save a run, and restore it in another process as if it had never stopped."""

import contextlib
import functools
import logging
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from resfit.backends.program_cache import text_digest
from resfit.callbacks import Callback, Checkpoint
from resfit.callbacks.logs import read
from resfit.data import Batches
from resfit.data.epochs import Epochs
from resfit.errors import CheckpointError, ResumeError
from resfit.trainer.checkpoint.finder import CheckpointFinder
from resfit.trainer.checkpoint.fingerprint import fingerprint_of, spans_epochs
from resfit.trainer.checkpoint.saved_run import Progress, SavedRun, all_finite
from resfit.trainer.checkpoint.store import CheckpointStore
from resfit.trainer.context import RunContext
from resfit.trainer.devices.multihost import Processes
from resfit.trainer.devices.placement import Placement
from resfit.trainer.loop.callback_list import CallbackList
from resfit.trainer.state.run_state import RunState
from resfit.trainer.state.train_state import Leaves, ScheduleSpan, TrainState

_log = logging.getLogger("resfit")


class Rollback(NamedTuple):
    """A request to return to a checkpoint in which all values are finite.

    Attributes:
      bad: (epoch, batch) of the step that failed: the checkpoint is from before it, if possible; None if unknown.
      then: called once the run is restored.
    """

    bad: tuple[int, int] | None
    then: Callable[[], None]


class CheckpointManager:
    """Saves a run and restores it.

    Args:
      checkpoints: the folder.
      keep: the number of newest checkpoints to keep.
      fingerprint: the settings that must be equal for an exact resume: name -> JSON value.
      state: of the run.
      placement: of the run.
      processes: of the run; the first one writes.

    Attributes:
      wanted: True if a callback requested a checkpoint; the run saves after all hooks.
      wanted_as_best: True to keep that checkpoint as the best so far.
      rollback: the rollback that a callback requested, or None.
    """

    def __init__(
        self,
        checkpoints: CheckpointStore,
        keep: int,
        fingerprint: Mapping[str, Any],
        state: RunState,
        placement: Placement,
        processes: Processes,
    ) -> None:
        self._processes = processes
        self._writes = processes.shard[0] == 0
        self._checkpoints, self._keep, self._fingerprint = checkpoints, keep, dict(fingerprint)
        self._state, self._placement = state, placement
        self._finder = CheckpointFinder(checkpoints, processes, self._fingerprint)
        self.wanted = self.wanted_as_best = False
        self.rollback: Rollback | None = None
        self._finite: set[int] = set()  # the checkpoints that a rollback can use
        self._numbers = checkpoints.next_step
        self._best: int | None = None
        self._found: SavedRun | None = None
        self._exact = True
        self._programs: dict[str, str] = {}
        self._differs: frozenset[str] = frozenset()
        self._other_span = False

    def find(self, *, exact: bool) -> Progress | None:
        """Find the newest checkpoint from which the run can resume.

        Args:
          exact: True to refuse a run with other settings.

        Returns:
          The progress of the checkpoint; None if there is no checkpoint.

        Raises:
          ResumeError: if the settings differ, or the network or optimizer is another one.
        """
        self._exact = exact
        found = self._finder.to_resume(exact=exact)
        if found is None:
            return None
        facts, progress = found.saved.facts, found.saved.progress
        self._check_shapes(facts["shapes"])
        self._found = found.saved
        self._best, self._finite = facts["best"], set(facts["finite"])
        if exact:
            self._programs = facts["programs"]
        self._differs = found.differs
        self._other_span = found.trains and not exact and spans_epochs(self._fingerprint)
        return progress if found.trains else progress._replace(finished=True)

    def _check_shapes(self, saved: Sequence[Sequence[int]]) -> None:
        shapes = self._state.shapes_on_host()
        if shapes != saved:
            raise ResumeError(
                f"The checkpoint holds the state of another network or optimizer: it has {len(saved)} arrays and this "
                f"model has {len(shapes)}, or their shapes differ. Expected the arrays of this model. Build and "
                "compile the model as before, or pass another folder."
            )

    def roll_back(self) -> Progress:
        """Find the checkpoint for the requested rollback; `restore` then restores it.

        Raises:
          NonFiniteLossError: if no checkpoint holds only finite values.
        """
        with _warn_and_continue():
            self._checkpoints.wait()
        self._found = self._finder.to_roll_back(None if self.rollback is None else self.rollback.bad)
        return self._found.progress

    def restore(self, data: Epochs, callbacks: CallbackList) -> Leaves:
        """Restore the checkpoint that was found: the state, the position in the data, the states of callbacks.

        Args:
          data: of the run.
          callbacks: after their on_train_begin.

        Returns:
          The metric sums of the epoch.

        Raises:
          ResumeError: if no checkpoint was found, or the data cannot return to the saved position.
        """
        if self._found is None:
            raise ResumeError("restore was called before a checkpoint was found. Call find or roll_back first.")
        self._check_replayable(self._found, data)
        found, self._found = self._found, None
        self._restore_state(found)
        data.seek(**found.facts["data"])
        callbacks.load_state_dicts(found.facts["callback_states"])
        if self.rollback is not None:
            rollback, self.rollback = self.rollback, None
            rollback.then()
        return tuple(self._placement.replicate(found.numbered("sums")))

    def _check_replayable(self, found: SavedRun, data: Epochs) -> None:
        if not data.replayable and self._exact and not found.facts["progress"]["finished"]:
            raise ResumeError(
                f"The saved run had taken {found.facts['data']['taken']} batches. The data are an iterator, or a "
                "dataset that changes itself between epochs, so this position cannot be found again. Expected a "
                "function that returns a fresh iterator; a loader, with or without state_dict and load_state_dict; a "
                "Keras dataset with set_epoch(epoch); or fit(shuffle=True) with a shuffled DataLoader. Pass "
                "resume='inexact' to continue with the remaining data."
            )

    def _restore_state(self, found: SavedRun) -> None:
        """Restore the state, except for numbers of the optimizer and a span that an inexact resume sets again."""
        layout = self._state.layout
        saved: Any = layout.unflatten(found.numbered("state"))
        optimizer_state = list(saved.optimizer_state)
        for name, index in (("learning_rate", layout.rate_index), ("weight_decay", layout.weight_decay_index)):
            if name in self._differs and index is not None:
                optimizer_state[index] = np.asarray(self._state.leaf(index))
        saved = saved._replace(optimizer_state=tuple(optimizer_state))
        self._differs = frozenset()  # a later rollback restores the numbers of this run
        if self._other_span:
            saved = saved._replace(span=self._span(saved, found.facts["progress"]).packed())
        self._state.take_from_host(layout.flatten(saved))
        self._state.epoch = found.facts["epoch"]

    def _span(self, saved: TrainState, progress: Mapping[str, Any]) -> ScheduleSpan:
        """Return the span of a schedule after an inexact resume: over the epochs of this fit."""
        now = self._state.span()
        begin = int(saved.step) - (progress["epoch"] * now.steps_per_epoch + progress["batch"])
        return now._replace(begin=begin, rate_factor=ScheduleSpan.unpacked(saved.span).rate_factor)

    @property
    def folder(self) -> pathlib.Path:
        """The folder of checkpoints, as it was given."""
        return self._checkpoints.named

    def save(
        self,
        progress: Progress,
        sums: Leaves,
        data: Epochs,
        callbacks: CallbackList,
        states: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin to save the run. Waits for the device, and for the previous checkpoint if that is unfinished.

        Args:
          progress: of the run.
          sums: metric sums of the epoch.
          data: of the run.
          callbacks: after all their hooks.
          states: the states of the callbacks; None for the present ones.
        """
        regular, as_best = self.wanted or progress.finished, self.wanted_as_best
        self.wanted = self.wanted_as_best = False
        self._state.take_from_module()  # callbacks may have assigned to it
        if not self._writes:
            return
        self._finish_previous()
        number = self._numbers
        self._numbers += 1  # also if the save fails: its unfinished folder keeps the number
        state = self._state.on_host()
        if as_best:
            self._best = number
        # Without the interrupt, a checkpoint made by an interrupt would not exist, so no rollback uses it.
        if regular and all_finite(state):
            self._finite.add(number)
        arrays = {f"state/{i}": leaf for i, leaf in enumerate(state)}
        arrays |= {f"sums/{i}": np.array(leaf) for i, leaf in enumerate(read(list(sums)))}
        facts = {
            **self._run_facts(),
            "progress": progress.packed(),
            "data": data.position(inside=bool(progress.batch), alone=self._processes.shard[1] == 1),
            "callback_states": callbacks.state_dicts() if states is None else dict(states),
            "shapes": [list(leaf.shape) for leaf in state],
            "regular": regular,
        }
        with _warn_and_continue():
            self._checkpoints.save(number, SavedRun(arrays, facts), self._retention(progress))

    def _finish_previous(self) -> None:
        """Wait for the previous checkpoint, and forget those that were deleted."""
        with _warn_and_continue():
            self._checkpoints.wait()
        with _warn_and_continue():  # apart, because it is due also after a failed save
            self._finite &= set(self._checkpoints.steps)

    def _run_facts(self) -> dict[str, Any]:
        return {
            "epoch": self._state.epoch,
            "fingerprint": self._fingerprint,
            "programs": self._programs,
            "best": self._best,
            "finite": sorted(self._finite),
        }

    def _retention(self, progress: Progress) -> Callable[[list[int]], Collection[int]]:
        # If a finished run gets more epochs, it resumes from the checkpoint before its end.
        keep = max(self._keep, 2) if progress.finished else self._keep
        return functools.partial(_kept, keep, self._best, frozenset(self._finite))

    def check_program(self, batch: str, program: str) -> None:
        """Compare a training step with the step of the saved run for such a batch.

        Raises:
          ResumeError: if it is another program: the loss, the optimizer, an augmentation, the inputs or labels that are
            read, or a version has changed.
        """
        if not program:
            return
        # Early checkpoints hold the digest of the program's text alone.
        if self._programs.get(batch, program) not in (program, text_digest(program)):
            raise ResumeError(
                f"The training step for a batch of {batch} is another program than that of the saved run. The network, "
                "the loss, a constant of the optimizer, an augmentation, the inputs or labels that are read, or a "
                "version has changed. Expected the same program, so that the resumed run ends where an uninterrupted "
                "run ends. Undo the change, pass another folder, or pass resume='inexact'."
            )
        self._programs[batch] = program

    def close(self) -> None:
        """Wait until all checkpoints are written, and release the folder."""
        if not self._writes:
            return
        with _warn_and_continue():
            self._checkpoints.close()


def manager_of(
    callbacks: Sequence[Callback],
    resume: bool | str,
    settings: Mapping[str, Any],
    data: Mapping[str, Batches | None],
    context: RunContext,
) -> CheckpointManager | None:
    """Return the manager that saves a run and restores it; None without a `Checkpoint` callback.

    Args:
      callbacks: of the fit.
      resume: argument of `fit`.
      settings: of `compile` and `fit`, by name: JSON values.
      data: of the run, by name; described only if the run is saved.
      context: of the run.

    Raises:
      ResumeError: if there are several folders, or the folder holds a run and `resume` is False.
      CheckpointError: if the folder cannot be used.
    """
    found = [callback for callback in callbacks if isinstance(callback, Checkpoint)]
    if not found and resume:
        raise ResumeError(
            f"fit got resume={resume!r} and no Checkpoint callback, so the folder of the run is unknown. Expected "
            "callbacks=[resfit.callbacks.Checkpoint(folder)], as in the run to resume."
        )
    if not found:
        return None
    if len(found) > 1:
        raise ResumeError(f"fit got {len(found)} Checkpoint callbacks. Expected one: a run has one folder.")
    (callback,) = found
    fingerprint = fingerprint_of(settings, data, context)
    store = CheckpointStore(callback.directory, writes=context.processes.shard[0] == 0)
    if store.steps and not resume:
        store.close()
        raise ResumeError(
            f"The folder {str(callback.directory)!r} holds checkpoints of a run. Expected an empty folder. Pass "
            "resume=True to resume that run, or pass another folder."
        )
    return CheckpointManager(store, callback.keep, fingerprint, context.state, context.placement, context.processes)


@contextlib.contextmanager
def _warn_and_continue() -> Iterator[None]:
    """Turn a CheckpointError into a warning: a full disk must not end a run."""
    try:
        yield
    except CheckpointError as error:
        _log.warning("%s Training continues.", error)


def _kept(keep: int, best: int | None, finite: Collection[int], complete: list[int]) -> set[int]:
    """Return the checkpoints to keep: the newest, the best, and those that a rollback can use."""
    regular = [number for number in complete if number in finite]
    return {*complete[-keep:], *regular[-keep:], *(() if best is None else (best,))}
