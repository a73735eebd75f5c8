"""A run is stopped and resumed repeatedly, by every means and in every part."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import resfit
from resfit.callbacks import Callback, Checkpoint
from resfit.errors import LabelError, ResumeError
from tests import levels
from tests.faults import runs, twin
from tests.helpers import Recorder, assert_same, labels

ROOT = Path(__file__).parents[2]
PLAN = twin.Plan(epochs=2, steps_per_epoch=None, validation="epochs", asked=0, best=True)
SETUP = "adamw, averages, schedule"


def explode() -> None:
    raise ZeroDivisionError


def fresh(setup: str = SETUP) -> resfit.Model:
    """Return the model that a new process builds."""
    module, _ = twin.new_module(0)
    model = resfit.Model(module)
    twin.compile_(model, setup)
    return model


def go(
    folder: Path, *more: Callback, model: resfit.Model | None = None, plan: twin.Plan = PLAN, **arguments: Any
) -> dict[str, Any]:
    """Start or resume a run, and return its results."""
    model = fresh() if model is None else model
    checkpoint = Checkpoint(folder, every=2)
    says = twin.fit(model, plan, SETUP, checkpoint, *more, **{"resume": True, **arguments})
    return {"says": says, "state": twin.state(model), "checkpoint": checkpoint.state_dict()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return go(tmp_path_factory.mktemp("whole"))


STOPS: dict[str, tuple[Callable[[], None], str, int]] = {
    "an exception in a callback": (explode, "on_train_batch_end", 4),
    "an exception in a validation": (explode, "on_test_batch_end", 1),
    "Ctrl-C in a validation": (runs.interrupt, "on_test_batch_end", 1),
    "SIGTERM in a validation": (runs.terminate, "on_test_begin", 1),
    "an exception as training ends": (explode, "on_train_end", 1),
}


EVERY_STOP = [*itertools.product(STOPS, [False, True])]


@pytest.mark.representatives("SIGTERM in a validation-False")
@pytest.mark.parametrize(("name", "in_the_same_model"), levels.only(EVERY_STOP[::3], EVERY_STOP))
def test_two_runs_resumed_after_any_stop_match_the_uninterrupted_run(
    name: str, in_the_same_model: bool, whole: dict[str, Any], tmp_path: Path
) -> None:
    model = fresh()
    action, hook, call = STOPS[name]
    with runs.stopped(SystemExit, KeyboardInterrupt, ZeroDivisionError):
        go(tmp_path, runs.Stops(call, action, hook), model=model)
    again = model if in_the_same_model else None
    assert_same(go(tmp_path, model=again), whole)
    assert_same(go(tmp_path, model=again), whole)  # finished: returns at once


@pytest.mark.parametrize("second", levels.only(["Ctrl-C in a validation"], STOPS))
def test_a_resumed_run_that_stops_can_resume(second: str, whole: dict[str, Any], tmp_path: Path) -> None:
    action, hook, _ = STOPS[second]
    with runs.stopped(SystemExit):
        go(tmp_path, runs.Stops(2, runs.terminate))
    with runs.stopped(SystemExit, KeyboardInterrupt, ZeroDivisionError):
        go(tmp_path, runs.Stops(1, action, hook))
    assert_same(go(tmp_path), whole)


SIGNALS = {"Ctrl-C": runs.interrupt, "SIGTERM": runs.terminate}
ENDS = [*itertools.product(["on_train_batch_end", "on_test_batch_end", "on_epoch_end"], SIGNALS)]


@pytest.mark.representatives("on_train_batch_end-Ctrl-C")
@pytest.mark.parametrize(("hook", "signal_"), levels.only(ENDS[::3], ENDS))
def test_a_requested_stop_still_holds_in_the_resumed_run(hook: str, signal_: str, tmp_path: Path) -> None:
    """A callback sets model.stop_training in the second batch, and then a signal stops the run."""
    plan = PLAN._replace(epochs=3, steps_per_epoch=4, asked=2)
    expected = go(tmp_path / "whole", plan=plan)
    assert expected["state"].steps == 2
    with runs.stopped(SystemExit, KeyboardInterrupt):
        go(tmp_path / "run", runs.Stops(2 if hook == "on_train_batch_end" else 1, SIGNALS[signal_], hook), plan=plan)
    assert_same(go(tmp_path / "run", plan=plan), expected)


def test_the_logs_of_on_train_end_survive_a_stop_at_the_end_of_the_last_epoch(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    with runs.stopped(KeyboardInterrupt):
        go(tmp_path, runs.Stops(2, runs.interrupt, "on_epoch_end"))
    told = go(tmp_path)["says"]["callbacks"][0]["seen"]["end"]
    assert told == whole["says"]["callbacks"][0]["seen"]["end"]
    assert "val_loss" in told


@pytest.mark.parametrize("error", [LabelError, ResumeError])
def test_a_fit_that_fails_before_its_first_step_does_not_move_the_schedule(
    error: type[Exception], tmp_path: Path
) -> None:
    model = fresh()
    go(tmp_path, model=model)
    before = twin.state(model)
    folder, y = (tmp_path, labels(10)) if error is ResumeError else (tmp_path / "new", labels(10) + 5)
    with pytest.raises(error):
        go(folder, model=model, epochs=7, y=y)
    assert twin.same(twin.state(model), before)


SECOND_SIGNAL = """
import os, signal, sys, time
import conftest
from tests.faults import runs, test_resume_again
def twice():
    os.kill(os.getpid(), signal.{name})
    print("held back", flush=True)
    os.kill(os.getpid(), signal.{name})
    time.sleep(600)
test_resume_again.go(test_resume_again.Path(sys.argv[1]), runs.Stops(3, twice))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code"),
    [("SIGTERM", 128 + signal.SIGTERM), pytest.param("SIGINT", -signal.SIGINT, marks=pytest.mark.slow)],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_a_second_signal_ends_the_process_at_once_and_the_run_resumes(
    name: str, code: int, whole: dict[str, Any], tmp_path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SECOND_SIGNAL.format(name=name), str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (code, "held back\n"), ended.stderr
    recorder = Recorder()
    assert_same(go(tmp_path, recorder), whole)
    assert recorder.names().count("on_train_batch_end") == whole["state"].steps - 2  # saved after every second step
