"""Where a run is, written down so that another process can go on from there as if it had never stopped."""

import contextlib
import functools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from resfit.backends.program_cache import text_digest
from resfit.callbacks.logs import read
from resfit.data.epochs import Epochs
from resfit.data.states import packed, unpacked
from resfit.errors import CallbackError, CheckpointError, NonFiniteLossError, ResumeError
from resfit.trainer.callback_list import CallbackList
from resfit.trainer.checkpoint.store import CheckpointStore, Saved
from resfit.trainer.multihost import Processes
from resfit.trainer.placement import Placement
from resfit.trainer.run_state import RunState
from resfit.trainer.state import Leaves, ScheduleSpan, TrainState

_log = logging.getLogger("resfit")


@contextlib.contextmanager
def _training_goes_on() -> Iterator[None]:
    """Says what could not be saved, and goes on: a full disk is no reason to lose a run."""
    try:
        yield
    except CheckpointError as error:
        _log.warning("%s Training goes on.", error)


class Progress(NamedTuple):
    """How far a `fit` has come: to the end of a batch and all its hooks, or of an epoch.

    Attributes:
      epoch: that goes on, or begins next.
      batch: batches of it that are done; after its last one its validation and end are still to come.
      steps: done by this fit, those before a resume included.
      validated: values of the last validation inside this epoch.
      logs: of the epoch before, which on_train_end is told if no other comes to its end.
      validating: whether a validation by steps is due, before anything else.
      stopping: whether somebody asked to stop, so that this epoch only comes to its end.
      finished: whether there is nothing left to do.
    """

    epoch: int
    batch: int = 0
    steps: int = 0
    validated: Mapping[str, Any] = {}
    logs: Mapping[str, Any] = {}
    validating: bool = False
    stopping: bool = False
    finished: bool = False


class Rollback(NamedTuple):
    """Going back to a checkpoint in which all is finite.

    Attributes:
      bad: (epoch, batch) of the step that failed, which is to come after the checkpoint, or None.
      then: what to do once the run is back there.
    """

    bad: tuple[int, int] | None
    then: Callable[[], None]


class CheckpointManager:
    """Saves a run, and brings one back.

    Args:
      checkpoints: the folder.
      keep: how many of the newest checkpoints to keep.
      fingerprint: what must be the same for a run to go on exactly: name -> JSON value.
      state: of the run.
      placement: of the run.
      processes: of the run, of which the first one writes.

    Attributes:
      wanted: whether a callback asked for a checkpoint; the loop saves after all hooks.
      wanted_as_best: whether that is to be kept as the best so far.
      rollback: how a callback asked to go back; None where none did.
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
        self.wanted = self.wanted_as_best = False
        self.rollback: Rollback | None = None
        self._finite: set[int] = set()  # the checkpoints to go back to, in which all is finite
        self._numbers = checkpoints.next_step
        self._best: int | None = None
        self._found: Saved | None = None
        self._exact = True
        self._programs: dict[str, str] = {}
        self._other_rate = self._other_span = False

    def find(self, *, exact: bool) -> Progress | None:
        """Look for the newest checkpoint that the run can go on from.

        Args:
          exact: refuse one of a run that was set up in another way.

        Returns:
          How far it had come; None if there is none.

        Raises:
          ResumeError: naming what differs.
        """
        self._exact = exact
        found = self._newest()
        if found is None:
            return None
        differs = self._differences(found)
        if differs and exact:
            before, now = _flat(found.facts["fingerprint"]), _flat(self._fingerprint)
            told = "; ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in differs)
            raise ResumeError(
                f"The run in this folder was set up in another way: {told}. Expected the same, to end where an "
                "uninterrupted run ends. Set it back, begin in another folder, or pass resume='inexact' to go on with "
                "the difference."
            )
        self._found = found = self._before_end(found)
        facts, progress = found.facts, _progress(found.facts)
        if differs:
            trains = "The run goes on, and not exactly", "The run is done, and nothing is trained"
            told = trains[not self._trains(progress)]
            _log.warning("%s: it was saved with other %s.", told, ", ".join(differs))
        shapes = self._state.shapes_on_host()
        if shapes != facts["shapes"]:
            raise ResumeError(
                "The checkpoint holds the state of another network or optimizer: "
                f"{len(facts['shapes'])} arrays, where there are {len(shapes)}, or of other shapes. Expected those of "
                "this model. Build and compile it as before, or begin in another folder."
            )
        self._best, self._finite = facts["best"], set(facts["finite"])
        if exact:
            self._programs = facts["programs"]
        self._other_rate = "learning_rate" in differs
        self._other_span = self._trains(progress) and not exact and _spans_epochs(self._fingerprint)
        return progress if self._trains(progress) else progress._replace(finished=True)

    def _differences(self, found: Saved) -> list[str]:
        """What was set up in another way, by name.

        Another number of epochs is none, if nothing before the end depends on it and the run has not come further.
        """
        before, now = _flat(found.facts["fingerprint"]), _flat(self._fingerprint)
        differs = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
        progress = found.facts["progress"]
        further = (progress["epoch"], progress["batch"]) > (now["epochs"], 0)
        if "epochs" in differs and not (_spans_epochs(now) or _spans_epochs(before) or further):
            differs.remove("epochs")
        return differs

    def _trains(self, progress: Progress) -> bool:
        """Return True if there is something left of the run."""
        return not progress.finished and (progress.epoch, progress.batch) <= (self._fingerprint["epochs"], 0)

    def _before_end(self, found: Saved) -> Saved:
        """Return where a finished run goes on if it is to have more epochs; else what was found.

        At the end callbacks may have changed the state, as `EarlyStopping` does, and an uninterrupted run would not
        have come to that end.

        Raises:
          ResumeError: if there is no checkpoint from before the end.
        """
        progress = _progress(found.facts)
        if not progress.finished or self._fingerprint["epochs"] <= found.facts["fingerprint"]["epochs"]:
            return found
        before = self._newest(lambda saved: not saved.facts["progress"]["finished"])
        if before is None and self._exact:
            raise ResumeError(
                f"The run in this folder was finished after {progress.epoch} epochs, and no checkpoint from before its "
                f"end is left, from which it could go on exactly to {self._fingerprint['epochs']}. Pass "
                "resume='inexact' to go on from its end, or begin in another folder."
            )
        before = before or found
        if self._exact and before.facts["progress"]["stopping"]:
            _log.warning(
                "A callback stopped the run in this folder after %d epochs, as it would have done in a run of %d too, "
                "so nothing is trained. resume='inexact' trains on.",
                progress.epoch,
                self._fingerprint["epochs"],
            )
            return found
        trains_on = before.facts["progress"] | {"stopping": False, "finished": False}
        return before._replace(facts=before.facts | {"progress": trains_on})

    def roll_back(self) -> Progress:
        """Looks for the checkpoint that `rollback` asks for, to be restored as one that `find` found.

        Raises:
          NonFiniteLossError: if there is none in which all is finite.
        """
        bad = None if self.rollback is None else self.rollback.bad
        with _training_goes_on():
            self._checkpoints.wait()
        # What a bad step began with may be finite and lost all the same, so one from before it is better.
        self._found = self._newest(lambda saved: _is_regular(saved) and (bad is None or _position(saved) < bad))
        self._found = self._found or self._newest(_is_finite)
        if self._found is None:
            raise NonFiniteLossError(
                "The loss is not finite, and there is no checkpoint from before, to go back to. Expected one. Save "
                "more often (Checkpoint(every=...)), lower the learning rate, or look for NaN in the inputs."
            )
        return _progress(self._found.facts)

    def _newest(self, accept: Callable[[Saved], bool] = lambda _: True) -> Saved | None:
        """What all processes go on from: the newest checkpoint that the one that writes can read, and will do."""
        newest = self._checkpoints.newest(accept) if self._writes else None
        number = self._processes.of_first(-1 if newest is None else newest[0])
        if number < 0:
            return None
        return _upgraded(self._checkpoints.read(number) if newest is None else newest[1])

    def restore(self, data: Epochs, callbacks: CallbackList) -> Leaves:
        """Puts what was found back: state, position in the data, what callbacks remember.

        Args:
          data: of the run.
          callbacks: whose on_train_begin was called already.

        Returns:
          The metric sums of the epoch.

        Raises:
          ResumeError: if nothing was found, or the data cannot be gone back in.
        """
        if self._found is None:
            raise ResumeError("There is nothing to go on from. Call find first.")
        if not data.replayable and self._exact and not self._found.facts["progress"]["finished"]:
            raise ResumeError(
                f"The saved run had had {self._found.facts['data']['taken']} batches of its data, which are an "
                "iterator now, or a dataset that changes itself between epochs, so the place cannot be found. Expected "
                "a function that returns a fresh iterator; a loader, with or without state_dict and load_state_dict; "
                "or a dataset of Keras with set_epoch(epoch). Or pass resume='inexact' to go on with what this one "
                "has left."
            )
        found, self._found = self._found, None
        arrays, facts = found.arrays, found.facts
        layout = self._state.layout
        saved: Any = layout.unflatten([arrays[f"state/{i}"] for i in range(len(self._state.leaves))])
        if self._other_rate and layout.rate_index is not None:  # it was asked for
            optimizer_state = list(saved.optimizer_state)
            optimizer_state[layout.rate_index] = np.asarray(self._state.leaf(layout.rate_index))
            saved = saved._replace(optimizer_state=tuple(optimizer_state))
        self._other_rate = False  # going back later is to a rate of this run
        if self._other_span:
            saved = saved._replace(span=self._span(saved, facts["progress"]).packed())
        self._state.take_from_host(layout.flatten(saved))
        self._state.epoch = facts["epoch"]
        data.seek(**facts["data"])
        callbacks.load_state_dicts(facts["callback_states"])
        if self.rollback is not None:
            rollback, self.rollback = self.rollback, None
            rollback.then()
        count = sum(name.startswith("sums/") for name in arrays)
        return tuple(self._placement.replicate([arrays[f"sums/{i}"] for i in range(count)]))

    def _span(self, saved: TrainState, progress: Mapping[str, Any]) -> ScheduleSpan:
        """The span of a schedule in a run that goes on with a difference: over the epochs of this fit."""
        now = self._state.span()
        begin = int(saved.step) - (progress["epoch"] * now.steps_per_epoch + progress["batch"])
        return now._replace(begin=begin, rate_factor=ScheduleSpan.unpacked(saved.span).rate_factor)

    def save(
        self,
        progress: Progress,
        sums: Leaves,
        data: Epochs,
        callbacks: CallbackList,
        states: Mapping[str, Any] | None = None,
    ) -> None:
        """Begins to write down where the run is. Waits for the device, and for the last checkpoint if it must.

        Args:
          progress: how far it has come.
          sums: metric sums of the epoch.
          data: of the run.
          callbacks: whose hooks have all been called.
          states: what callbacks are to remember instead of what they do now.
        """
        regular, as_best = self.wanted or progress.finished, self.wanted_as_best
        self.wanted = self.wanted_as_best = False
        self._state.take_from_module()  # callbacks may have assigned to it
        if not self._writes:
            return
        with _training_goes_on():
            self._checkpoints.wait()
        with _training_goes_on():  # also where the one before could not be written
            self._finite &= set(self._checkpoints.steps)
        state = self._state.on_host()
        arrays = {f"state/{i}": leaf for i, leaf in enumerate(state)}
        arrays |= {f"sums/{i}": np.array(leaf) for i, leaf in enumerate(read(list(sums)))}
        number = self._numbers
        self._numbers += 1  # also where it fails: what is half written keeps its name
        if as_best:
            self._best = number
        # One that an interrupt made is none to go back to: without the interrupt it would not be there.
        if regular and _all_finite(state):
            self._finite.add(number)
        facts = {
            "progress": progress._asdict() | _packed_logs(progress._asdict()),
            "epoch": self._state.epoch,
            "data": data.position(inside=bool(progress.batch), alone=self._processes.shard[1] == 1),
            "callback_states": callbacks.state_dicts() if states is None else dict(states),
            "fingerprint": self._fingerprint,
            "programs": self._programs,
            "shapes": [list(leaf.shape) for leaf in state],
            "best": self._best,
            "finite": sorted(self._finite),
            "regular": regular,
        }
        # More epochs of a finished run go on from the checkpoint before its end.
        keep = max(self._keep, 2) if progress.finished else self._keep
        kept = functools.partial(_kept, keep, self._best, frozenset(self._finite))
        with _training_goes_on():
            self._checkpoints.save(number, Saved(arrays, facts), kept)

    def check_program(self, batch: str, program: str) -> None:
        """Compare a training step with the one that the saved run took for such a batch.

        Raises:
          ResumeError: if it is another program: the loss, the optimizer, an augmentation, the inputs or labels that are
            read, or a version has changed.
        """
        if not program:
            return
        # Early checkpoints hold the digest of the program's text alone.
        if self._programs.get(batch, program) not in (program, text_digest(program)):
            raise ResumeError(
                f"The training step for a batch of {batch} is another program than that of the saved run: the network, "
                "the loss, the optimizer's constants, an augmentation, the inputs or labels that are read, or a "
                "version has changed. Expected the same, to end where an uninterrupted run ends. Set it back, begin in "
                "another folder, or pass resume='inexact'."
            )
        self._programs[batch] = program

    def close(self) -> None:
        """Waits until all is written."""
        if not self._writes:
            return
        with _training_goes_on():
            self._checkpoints.close()


def _spans_epochs(fingerprint: Mapping[str, Any]) -> bool:
    """Return True for a named schedule, whose rates depend on the number of epochs; its name is in the fingerprint."""
    return isinstance(fingerprint["learning_rate"], str)


def _progress(facts: Mapping[str, Any]) -> Progress:
    return Progress(**facts["progress"] | {name: unpacked(facts["progress"][name]) for name in _LOGS})


_LOGS = ("validated", "logs")


def _packed_logs(progress: Mapping[str, Any]) -> dict[str, Any]:
    return {name: packed(dict(progress[name]), _refused) for name in _LOGS}


def _refused(place: str, what: str) -> CallbackError:
    return CallbackError(
        f"The logs, at {place.removeprefix('state_dict()')}, hold {what}, which a checkpoint cannot hold. Expected "
        "callbacks to add numbers or arrays to the logs."
    )


_RENAMED = {"_SeenInputs": "SeenData"}


def _upgraded(saved: Saved) -> Saved:
    """Return what an earlier version saved, which left it to JSON, in the form of this one."""
    facts = saved.facts
    if "_SeenInputs" in facts.get("callback_states", {}):  # the former name of SeenData
        states = {_RENAMED.get(name, name): state for name, state in facts["callback_states"].items()}
        return saved._replace(facts=facts | {"callback_states": states})
    if "callback_states" in facts:
        return saved
    states = {_RENAMED.get(name, name): packed(state) for name, state in facts["callbacks"].items()}
    progress = facts["progress"] | _packed_logs(facts["progress"])
    return saved._replace(facts=facts | {"callback_states": states, "progress": progress})


def _kept(keep: int, best: int | None, finite: Collection[int], complete: list[int]) -> set[int]:
    """Which checkpoints stay: the newest, the best, and those that a run that diverges can go back to."""
    regular = [number for number in complete if number in finite]
    return {*complete[-keep:], *regular[-keep:], *(() if best is None else (best,))}


def _position(saved: Saved) -> tuple[int, int]:
    progress = saved.facts["progress"]
    return progress["epoch"], progress["batch"]


def _is_regular(saved: Saved) -> bool:
    return saved.facts["regular"] and _is_finite(saved)


def _is_finite(saved: Saved) -> bool:
    return not saved.facts["progress"]["finished"] and _all_finite(
        [array for name, array in saved.arrays.items() if name.startswith("state/")]
    )


def _all_finite(arrays: Sequence[np.ndarray]) -> bool:
    floats = [array for array in arrays if jnp.issubdtype(array.dtype, jnp.inexact)]
    with np.errstate(all="ignore"):
        # A sum takes a fraction of the time, and is finite wherever all it sums is, unless it overflows.
        return all(bool(np.isfinite(array.sum()) or np.isfinite(array).all()) for array in floats)


def _flat(fingerprint: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Its values under dotted names, so that a difference is named and not a dict in which it stands."""
    flat: dict[str, Any] = {}
    for name, value in fingerprint.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
