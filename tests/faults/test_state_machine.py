"""After any calls in any order, with stops anywhere, a model matches a simple reference of it."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import resfit
from resfit.callbacks import Callback, Checkpoint
from resfit.trainer.checkpoint.manager import CheckpointManager
from resfit.trainer.loop.evaluator import Evaluator
from resfit.trainer.state.run_state import RunState
from tests import levels
from tests.faults import runs, twin
from tests.helpers import assert_close, assert_same, fewer_examples, flags, images, labels

EXAMPLES = int(os.environ.get("RESFIT_EXAMPLES", "0"))  # of the long search; 0 for the number of the profile

# Each setup costs a dozen compilations. The profile of `make test` has two setups with nothing in common.
FEW = settings.default.max_examples <= 10 and not EXAMPLES
setups = st.sampled_from(["sgd", "adamw, averages, schedule"] if FEW else list(twin.SETUPS))
seeds = st.integers(1, 3)
intervals = st.sampled_from([1, 2, "epoch"])
plans = st.builds(
    twin.Plan,
    epochs=st.integers(1, 2),
    steps_per_epoch=st.sampled_from([None, 4]),
    validation=st.sampled_from(["none", "epochs", "steps"]),
    asked=st.sampled_from([0, 0, 0, 1, 3]),
    best=st.booleans(),
)


class Stop(NamedTuple):
    """An event at the n-th call of a hook that stops a run."""

    how: str
    hook: str
    call: int


class Boom(Exception):  # noqa: N818
    """Raised by a callback."""


def explode() -> None:
    raise Boom


HOW: dict[str, Callable[[], None]] = {"SIGTERM": runs.terminate, "Ctrl-C": runs.interrupt, "an exception": explode}
# Mostly hooks that every run calls, early enough to be reached.
stops = st.tuples(
    st.sampled_from(list(HOW)),
    st.one_of(
        st.tuples(st.sampled_from(["on_train_batch_begin", "on_train_batch_end"]), st.integers(1, 6)),
        st.tuples(st.sampled_from(["on_train_begin", "on_epoch_begin", "on_epoch_end"]), st.integers(1, 2)),
        st.tuples(st.sampled_from(["on_test_begin", "on_test_batch_end", "on_test_end"]), st.integers(1, 2)),
    ),
).map(lambda drawn: Stop(drawn[0], *drawn[1]))
FAILURES: dict[str, tuple[type[Exception], Callable[[resfit.Model], Any]]] = {
    "labels out of range": (resfit.errors.LabelError, lambda model: model.fit(images(10), labels(10) + 5, verbose=0)),
    "other lengths": (resfit.errors.DataError, lambda model: model.fit(images(10), labels(9), verbose=0)),
    "other shapes": (TypeError, lambda model: model.fit(images(10)[:, :4], labels(10), batch_size=4, verbose=0)),
    "NaN": (resfit.errors.DataError, lambda model: model.fit(images(10) * np.nan, labels(10), verbose=0)),
    "no folder": (
        resfit.errors.ResumeError,
        lambda model: model.fit(images(10), labels(10), epochs=3, resume=True, verbose=0),
    ),
    "bad labels of one batch": (
        resfit.errors.LabelError,
        lambda model: model.test_on_batch(images(4), np.full(4, -1)),
    ),
    "shapes of another network": (TypeError, lambda model: model.predict(images(4)[:, :4], verbose=0)),
    "weights of another network": (resfit.errors.ModuleError, lambda model: model.set_weights([np.zeros(3)])),
    "an unknown optimizer": (resfit.errors.CompileError, lambda model: model.compile("sdg")),
    "two rates": (
        resfit.errors.CompileError,
        lambda model: model.compile(optax.sgd(0.1), learning_rate=0.1, ema=0.5),
    ),
    "a part that is not there": (resfit.errors.ModuleError, lambda model: model.freeze("tail")),
    "an unknown ending": (resfit.errors.SavedModelError, lambda model: model.save("model.bin")),
}


class Counts(Callback):
    """Counts the steps of this call."""

    steps = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1


class Pending:
    """A run in a folder.

    Attributes:
      folder: of the checkpoints.
      setup: of the model at the start.
      asked: the learning rate that was set before the run; None for that of the setup.
      plan: of the fit.
      every: the interval between checkpoints.
      run: the uninterrupted run.
      saved: the number of steps that cannot be lost any more.
      finished: True if the run completed.
    """

    def __init__(
        self, folder: Path, setup: str, asked: float | None, plan: twin.Plan, every: Any, run: twin.Run
    ) -> None:
        self.folder, self.setup, self.asked, self.plan, self.every = folder, setup, asked, plan, every
        self.run = run
        self.saved, self.finished = 0, False

    @property
    def interval(self) -> int:
        """The largest number of steps that an exception may lose."""
        epoch = self.plan.steps_per_epoch or twin.STEPS
        return epoch if self.every == "epoch" else min(self.every, epoch)

    @property
    def empty(self) -> bool:
        return not any(path.name.isdecimal() for path in self.folder.iterdir()) if self.folder.is_dir() else True


class Runs(RuleBasedStateMachine):
    """A model, and the state that it must have."""

    own_programs = False

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path(tempfile.mkdtemp())
        self._number = 0
        self.pending: Pending | None = None

    def teardown(self) -> None:
        shutil.rmtree(self._folder)

    def new_path(self) -> Path:
        self._number += 1
        return self._folder / str(self._number)

    # --- what can be done -----------------------------------------------------------------------------------------

    @initialize(seed=seeds, setup=setups)
    def a_new_model(self, seed: int, setup: str) -> None:
        self.net, held = twin.new_module(seed)
        self.flags = flags(self.net)
        self.model = resfit.Model(self.net)
        twin.compile_(self.model, setup, own_programs=self.own_programs)
        self.setup, self.where, self.asked = setup, twin.compiled(setup, held), None

    @rule(setup=setups)
    def compile(self, setup: str) -> None:
        held = twin.chosen(self.setup, self.where)
        twin.compile_(self.model, setup, own_programs=self.own_programs)
        self.setup, self.where, self.asked = setup, twin.compiled(setup, held), None

    @rule(rate=st.sampled_from([0.05, 0.01]))
    def set_the_rate(self, rate: float) -> None:
        if twin.scheduled(self.setup):
            with pytest.raises(resfit.errors.CompileError, match="follows a schedule"):
                self.model.learning_rate = rate
            return
        self.model.learning_rate = self.asked = rate
        self.where = twin.with_rate(self.setup, self.where, rate)

    @rule(plan=plans, every=intervals, stop=st.none() | stops)
    def fit(self, plan: twin.Plan, every: Any, stop: Stop | None) -> None:
        run = twin.run(self.setup, self.where, plan)
        self.pending = Pending(self.new_path(), self.setup, self.asked, plan, every, run)
        self._go(stop, resume=False)

    @precondition(lambda self: self.pending is not None)
    @rule(seed=st.none() | seeds, stop=st.none() | stops)
    def resume(self, seed: int | None, stop: Stop | None) -> None:
        """Resume in this model, or in a new model as a new process does."""
        pending = self.pending
        if seed is not None:
            self.a_new_model(seed, pending.setup)
        elif self.setup != pending.setup:
            self.compile(pending.setup)
        if pending.asked != self.asked:
            self.set_the_rate(pending.asked or twin.SETUPS[pending.setup][1]["learning_rate"])
        if pending.empty:  # then a run starts at the present state
            pending.run = twin.run(self.setup, self.where, pending.plan)
        event(f"resumed: {'finished' if pending.finished else 'empty' if pending.empty else 'unfinished'}")
        self._go(stop, resume=True)

    @rule(plan=plans, every=intervals, ends=st.lists(st.tuples(stops, st.none() | seeds), min_size=1, max_size=3))
    def fit_and_resume(self, plan: twin.Plan, every: Any, ends: list[tuple[Stop, int | None]]) -> None:
        """Fit, stop and resume repeatedly, and complete the run."""
        self.fit(plan, every, ends[0][0])
        for (_, seed), (stop, _) in itertools.pairwise(ends):
            self.resume(seed, stop)
        self.resume(ends[-1][1], None)

    def _go(self, stop: Stop | None, *, resume: bool) -> None:
        pending, before, counts, stopped = self.pending, self.where, Counts(), None
        checkpoint = Checkpoint(pending.folder, every=pending.every)
        more: list[Callback] = [counts, checkpoint]
        if stop is not None:
            if pending.plan.validation == "none" and "test" in stop.hook:
                stop = stop._replace(hook="on_train_batch_end")
            more.append(runs.Stops(stop.call, HOW[stop.how], stop.hook))
        try:
            says = twin.fit(self.model, pending.plan, self.setup, *more, resume=resume)
        except (SystemExit, KeyboardInterrupt, Boom) as exception:
            stopped = exception
        left = pending.run.steps - pending.saved
        assert counts.steps <= left, f"{counts.steps} steps, of which only {left} were to be done"
        if stopped is None:
            assert counts.steps == left or not pending.finished
            event("came to its end")
            assert_same(says, pending.run.says)
            assert checkpoint.state_dict() == {"steps": pending.run.steps, "best": None}
            self.where = pending.run.end
            pending.finished, pending.saved = True, pending.run.steps
            return
        event(f"stopped by {type(stopped).__name__} in {stop.hook}{' of a resumed run' if resume else ''}")
        assert isinstance(stopped, SystemExit) == (stop.how == "SIGTERM")
        assert isinstance(stopped, KeyboardInterrupt) == (stop.how == "Ctrl-C")
        self.where = self._on_the_way(pending, before)
        if counts.steps or stop.how != "an exception":  # otherwise the restore may not have happened yet
            done = self.where.steps - pending.run.trail[0].steps
            pending.saved = max(pending.saved, done - (pending.interval if stop.how == "an exception" else 0))

    def _on_the_way(self, pending: Pending, before: twin.State) -> twin.State:
        """Return the state after a stop: one of the run, or the one from before if nothing was restored yet."""
        now = twin.state(self.model)
        n = len(twin.names(self.setup)) * (2 if twin.averaged(self.setup) else 1)
        candidates = [*pending.run.trail, before]
        if pending.plan.best:  # the run ends with the best weights and averages so far
            candidates += [
                state._replace(leaves=(*best.leaves[:n], *state.leaves[n:]))
                for state in pending.run.trail
                for best in pending.run.trail
            ]
        assert any(twin.same(now, state) for state in candidates), "the run never was in such a state"
        return now

    @rule(weights=st.sampled_from(["raw", "ema"]))
    def evaluate(self, weights: str) -> None:
        if weights == "ema" and not twin.averaged(self.setup):
            return
        ask = lambda model: model.evaluate(images(7), labels(7), batch_size=4, verbose=0, weights=weights)  # noqa: E731
        expected, _ = twin.after(self.setup, self.where, ask)
        assert ask(self.model) == ask(self.model) == expected

    @rule(weights=st.sampled_from(["raw", "ema"]))
    def predict(self, weights: str) -> None:
        if weights == "ema" and not twin.averaged(self.setup):
            return
        ask = lambda model: model.predict(images(7), batch_size=4, verbose=0, weights=weights)  # noqa: E731
        expected, _ = twin.after(self.setup, self.where, ask)
        assert_same([ask(self.model), ask(self.model)], [expected, expected])

    @rule()
    def train_on_batch(self) -> None:
        if twin.scheduled(self.setup) and not self.where.steps:
            with pytest.raises(resfit.errors.CompileError, match="train_on_batch has none"):
                self.model.train_on_batch(images(4), labels(4))
            return
        train = lambda model: model.train_on_batch(images(4), labels(4))  # noqa: E731
        expected, where = twin.after(self.setup, self.where, train)
        assert train(self.model) == expected
        self.where = where

    @rule()
    def test_on_batch(self) -> None:
        ask = lambda model: model.test_on_batch(images(4), labels(4))  # noqa: E731
        expected, _ = twin.after(self.setup, self.where, ask)
        assert ask(self.model) == ask(self.model) == expected

    @rule(scale=st.sampled_from([0.5, 2.0]), assigned=st.booleans())
    def set_weights(self, scale: float, assigned: bool) -> None:
        held = twin.chosen(self.setup, self.where)
        new = {name: value * np.float32(scale) for name, value in held.items()}
        if assigned:
            new = {"head.kernel": new["head.kernel"]}
            self.model.module.head.kernel[...] = new["head.kernel"]
        else:
            self.model.set_weights([value * scale for value in self.model.get_weights()])
        self.where = twin.with_values(self.setup, self.where, held | new, new)

    @rule(weights=st.sampled_from(["raw", "ema"]), seed=seeds, setup=setups, go_on=st.booleans())
    def save_and_load(self, weights: str, seed: int, setup: str, go_on: bool) -> None:
        if weights == "ema" and not twin.averaged(self.setup):
            return
        path = self.new_path().with_suffix(".safetensors")
        self.model.save(path, weights=weights)
        module, _ = twin.new_module(seed)
        loaded = resfit.load(path, module)
        expected = twin.chosen(self.setup, self.where, weights)
        assert_same(twin.holds(module), expected)
        ask = lambda model, **more: model.predict(images(7), batch_size=4, verbose=0, **more)  # noqa: E731
        asked = ask(self.model, weights=weights)
        assert_close(ask(loaded), asked)  # on all devices until compile
        twin.compile_(loaded, setup, own_programs=self.own_programs)
        assert_same(ask(loaded), asked)
        if go_on:
            self.model, self.net, self.flags = loaded, module, flags(module)
            self.setup, self.where, self.asked = setup, twin.compiled(setup, expected), None

    @rule(name=st.sampled_from(list(FAILURES)))
    def fail(self, name: str) -> None:
        """Make a call that fails; the invariants check that nothing is lost."""
        error, call = FAILURES[name]
        with pytest.raises(error):
            call(self.model)

    @precondition(lambda self: self.pending is not None and not self.pending.empty)
    @rule(differs=st.sampled_from(["a second run", "steps of an epoch"]))
    def refuse(self, differs: str) -> None:
        """Start a run, or resume another one, in a folder that holds a run: both fail, and nothing is lost."""
        again = differs == "a second run"
        plan = self.pending.plan if again else self.pending.plan._replace(steps_per_epoch=7)
        with pytest.raises(resfit.errors.ResumeError):
            twin.fit(self.model, plan, self.setup, Checkpoint(self.pending.folder), resume=not again)

    # --- what must hold after all of it ---------------------------------------------------------------------------

    @invariant()
    def the_module_holds_the_values_and_its_flags_are_its_own(self) -> None:
        assert_same(twin.holds(self.net), twin.chosen(self.setup, self.where))
        assert flags(self.net) == self.flags
        assert self.model.module is self.net

    @invariant()
    def every_leaf_and_counter_is_what_it_must_be(self) -> None:
        now = twin.state(self.model)
        assert_same(now.leaves, self.where.leaves)
        assert (now.passes, now.steps) == (self.where.passes, self.where.steps)


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def search(machine: type[Runs], examples: int) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=12, **QUIET))


def test_a_model_matches_its_reference_after_any_sequence_of_calls() -> None:
    search(Runs, EXAMPLES or fewer_examples(2).max_examples)


@pytest.mark.slow
def test_a_model_matches_its_reference_also_with_programs_traced_in_any_state() -> None:
    class RunsThatTrace(Runs):
        own_programs = True

    search(RunsThatTrace, fewer_examples(8).max_examples)


# --- negative controls: the machine finds what it is for ----------------------------------------------------------


def restoring_no_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    restore = CheckpointManager.restore

    def forgetful(self: CheckpointManager, *arguments: Any) -> Any:
        before = [np.array(leaf) for leaf in self._state.arrays.optimizer_state]
        sums = restore(self, *arguments)
        replicated = tuple(self._placement.replicate(before))
        self._state.arrays = self._state.arrays._replace(optimizer_state=replicated)
        return sums

    monkeypatch.setattr(CheckpointManager, "restore", forgetful)


def evaluating_moves_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = Evaluator.evaluate

    def careless(self: Evaluator, *arguments: Any) -> Any:
        results = evaluate(self, *arguments)
        state = self._context.state
        first, *others = state.arrays.params
        state.replace(state.layout.flatten(state.arrays._replace(params=(first + 1, *others))))
        state.publish()
        return results

    monkeypatch.setattr(Evaluator, "evaluate", careless)


def losing_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    restore = CheckpointManager.restore

    def forgetful(self: CheckpointManager, *arguments: Any) -> Any:
        before = self._state.epoch
        sums = restore(self, *arguments)
        self._state.epoch = before
        return sums

    monkeypatch.setattr(CheckpointManager, "restore", forgetful)


def a_failure_costs_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    set_visible = RunState.set_visible

    def careless(self: RunState, arrays: Any, averages: Any = None) -> None:
        self.arrays = self.arrays._replace(step=self.arrays.step + 1)
        set_visible(self, arrays, averages)

    monkeypatch.setattr(RunState, "set_visible", careless)


@pytest.mark.slow
@pytest.mark.parametrize(
    "break_",
    levels.only(
        [losing_the_passes],
        [restoring_no_optimizer, evaluating_moves_a_value, losing_the_passes, a_failure_costs_a_step],
    ),
)
def test_the_state_machine_detects(
    break_: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for setup in twin.SETUPS:
        twin.first(setup)
    break_(monkeypatch)
    search = settings(
        max_examples=100,
        stateful_step_count=12,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
        print_blob=False,
        **QUIET,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Runs, settings=search)
