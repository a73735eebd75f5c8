"""A run that is stopped anywhere and resumed by the same code matches the uninterrupted run bit for bit."""

import contextlib
import functools
import itertools
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import resfit
from resfit.callbacks import Checkpoint
from resfit.data.epochs import Epochs
from resfit.errors import CallbackError, ResumeError, StepFailed
from resfit.trainer.checkpoint.manager import CheckpointManager
from resfit.trainer.loop.callback_list import CallbackList
from tests import levels
from tests.faults import runs
from tests.helpers import PlainNet, assert_same, labels, state_of


@functools.cache
def whole(folder: Path, setting: str) -> dict[str, Any]:
    """Return the results of the uninterrupted run."""
    arguments, fit = SETTINGS[setting]
    return runs.run(runs.model(**arguments), folder / setting, **fit)


# The arguments of a run: of compile, and of fit.
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "jit": ({}, {}),
    "sharded": ({"dispatch": "sharded"}, {}),
    "validation every two steps": ({}, {"validation_every": 2}),
    "image sizes": ({}, {"image_sizes": {0: 4, 1: (6, 5), 2: None}}),
    "five steps an epoch": ({"learning_rate": 0.01}, {"steps_per_epoch": 5}),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def resumed(setting: str, folder: Path, *stops: Any, **more: Any) -> dict[str, Any]:
    """Return the results of a run that each of these stops in turn, resumed in a new model after each stop."""
    arguments, fit = SETTINGS[setting]
    for stop in stops:
        with runs.stopped(SystemExit, KeyboardInterrupt, ZeroDivisionError):
            runs.run(runs.model(**arguments), folder, stop, resume=True, **fit, **more)
    return runs.run(runs.model(**arguments), folder, resume=True, **fit, **more)


STEPS = range(1, runs.STEPS + 1)


@pytest.mark.parametrize(
    ("setting", "step"),
    levels.only(
        [("jit", 3), ("jit", runs.STEPS)],  # the ends of the first epoch and of the last
        itertools.product(SETTINGS, STEPS),
        [*(("jit", step) for step in STEPS), *((setting, step) for setting in SETTINGS for step in (2, 6))],
    ),
)
def test_a_run_that_is_terminated_after_any_step_goes_on_there(
    setting: str, step: int, shared: Path, tmp_path: Path
) -> None:
    assert_same(resumed(setting, tmp_path / "run", runs.Stops(step, runs.terminate)), whole(shared, setting))


@pytest.mark.representatives("3")
@pytest.mark.parametrize("step", levels.only([1, 3], STEPS))  # before the first checkpoint, and a step after it
def test_resume_after_an_exception_starts_from_the_newest_checkpoint(step: int, shared: Path, tmp_path: Path) -> None:
    crash = runs.Stops(step, lambda: 1 / 0)
    assert_same(resumed("jit", tmp_path / "run", crash), whole(shared, "jit"))


@pytest.mark.slow
def test_resume_after_a_failed_device_step_starts_from_the_newest_checkpoint(tmp_path: Path) -> None:
    armed: list[bool] = []

    def explode(x: np.ndarray) -> np.ndarray:
        if armed:
            raise ZeroDivisionError
        return x

    class Explodes(PlainNet):
        def __call__(self, x: Any) -> Any:
            x = jax.pure_callback(explode, jax.ShapeDtypeStruct(x.shape, x.dtype), jax.lax.stop_gradient(x))
            return super().__call__(x)

    expected = runs.run(runs.small(Explodes), tmp_path / "whole")
    with pytest.raises(StepFailed, match="resume=True to resume from the newest checkpoint"):
        runs.run(runs.small(Explodes), tmp_path / "run", runs.Stops(4, lambda: armed.append(True)))
    armed.clear()
    assert_same(runs.run(runs.small(Explodes), tmp_path / "run", resume=True), expected)


STOPS = {"Ctrl-C": runs.interrupt, "SIGTERM": runs.terminate}
HOOKS = ["on_epoch_begin", "on_epoch_end", "on_test_begin", "on_test_batch_end", "on_test_end"]


@pytest.mark.representatives("Ctrl-C-on_test_begin")
@pytest.mark.parametrize(
    ("stop", "hook"),
    levels.only([*zip(itertools.cycle(STOPS), HOOKS, strict=False)], itertools.product(STOPS, HOOKS)),
)
def test_a_run_that_is_stopped_in_any_hook_goes_on(stop: str, hook: str, shared: Path, tmp_path: Path) -> None:
    assert_same(resumed("jit", tmp_path / "run", runs.Stops(2, STOPS[stop], hook)), whole(shared, "jit"))


@pytest.mark.slow
def test_a_resumed_run_can_be_resumed_repeatedly(shared: Path, tmp_path: Path) -> None:
    stops = [runs.Stops(1, runs.terminate) for _ in range(runs.STEPS)]
    assert_same(resumed("jit", tmp_path / "run", *stops), whole(shared, "jit"))


def test_a_finished_run_gives_its_history_at_once(shared: Path, tmp_path: Path) -> None:
    arguments, fit = SETTINGS["jit"]
    expected = runs.run(runs.model(**arguments), tmp_path / "run", **fit)
    steps: list[int] = []
    again = runs.run(
        runs.model(**arguments), tmp_path / "run", runs.Stops(1, lambda: steps.append(1)), resume=True, **fit
    )
    assert_same(again, expected)
    assert steps == []


def test_resume_in_an_empty_folder_starts_a_run(shared: Path, tmp_path: Path) -> None:
    assert_same(resumed("jit", tmp_path / "run"), whole(shared, "jit"))


# --- negative controls: each of these left out, the same test fails -----------------------------------------------


def without_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    restore = CheckpointManager.restore

    def forgetful(self: CheckpointManager, *arguments: Any) -> Any:
        before = self._state.arrays
        sums = restore(self, *arguments)
        self._state.arrays = self._state.arrays._replace(carried=before.carried)
        return sums

    monkeypatch.setattr(CheckpointManager, "restore", forgetful)


def without_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    restore = CheckpointManager.restore

    def forgetful(self: CheckpointManager, *arguments: Any) -> Any:
        before = self._state.arrays
        sums = restore(self, *arguments)
        self._state.arrays = self._state.arrays._replace(step=before.step)
        return sums

    monkeypatch.setattr(CheckpointManager, "restore", forgetful)


def without_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    restore = CheckpointManager.restore

    def forgetful(self: CheckpointManager, *arguments: Any) -> Any:
        before = self._state.arrays
        sums = restore(self, *arguments)
        self._state.arrays = self._state.arrays._replace(optimizer_state=before.optimizer_state)
        return sums

    monkeypatch.setattr(CheckpointManager, "restore", forgetful)


def without_the_position(monkeypatch: pytest.MonkeyPatch) -> None:
    seek = Epochs.seek
    monkeypatch.setattr(
        Epochs, "seek", lambda self, passes, taken, **more: seek(self, passes, max(taken - 1, 0), **more)
    )


def without_metric_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    restore = CheckpointManager.restore
    monkeypatch.setattr(
        CheckpointManager, "restore", lambda self, *arguments: tuple(0 * one for one in restore(self, *arguments))
    )


def without_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CallbackList, "load_state_dicts", lambda self, states: None)


@pytest.mark.representatives("without_metric_sums")
@pytest.mark.parametrize(
    "leave_out",
    levels.only(
        [without_the_position, without_metric_sums],
        [
            without_statistics, without_the_step, without_the_optimizer, without_the_position, without_metric_sums,
            without_callbacks,
        ],
    ),
)  # fmt: skip
def test_the_comparison_detects_each_part_that_is_not_restored(
    leave_out: Callable[[pytest.MonkeyPatch], None], shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(shared, "jit")
    arguments, fit = SETTINGS["jit"]
    with runs.stopped(SystemExit):
        runs.run(runs.model(**arguments), tmp_path / "run", runs.Stops(4, runs.terminate), **fit)
    leave_out(monkeypatch)
    found = runs.run(runs.model(**arguments), tmp_path / "run", resume=True, **fit)
    with pytest.raises((AssertionError, ValueError), match=r"Mismatch|not equal|structure error"):
        assert_same(found, expected)


def test_the_run_has_every_part_that_could_be_lost(shared: Path) -> None:
    found = whole(shared, "jit")
    assert set(found["history"]) >= {"loss", "val_loss", "learning_rate"}
    assert len(set(found["history"]["learning_rate"])) == runs.EPOCHS
    assert found["counts"]["batches"] == runs.STEPS
    assert state_of(runs.model()).layout.plan.has_batch_norm
    assert isinstance(resfit.callbacks.Checkpoint("x"), resfit.callbacks.Callback)


# --- when nothing can be written ----------------------------------------------------------------------------------


@contextlib.contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """Limit the size of files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_training_continues_on_a_full_disk_and_keeps_the_last_good_checkpoint(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, folder = whole(shared, "jit"), tmp_path / "run"
    with runs.stopped(SystemExit):
        runs.run(runs.model(), folder, runs.Stops(3, runs.terminate))
    with no_file_longer_than(16):
        assert_same(runs.run(runs.model(), folder, resume=True), expected)
    assert "could not be written" in caplog.text
    assert "Training continues" in caplog.text
    assert_same(runs.run(runs.model(), folder, resume=True), expected)  # from the third step again


def test_a_deleted_folder_is_created_again(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    vanish = runs.Stops(3, lambda: folder.rename(tmp_path / "gone"))
    expected = whole(shared, "jit")
    assert_same(runs.run(runs.model(), folder, vanish), expected)
    assert_same(runs.run(runs.model(), folder, resume=True), expected)  # it is finished


# --- what is refused ----------------------------------------------------------------------------------------------


def test_resume_with_other_settings_is_refused_and_names_them(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with runs.stopped(SystemExit):
        runs.run(runs.model(), folder, runs.Stops(3, runs.terminate))
    with pytest.raises(ResumeError, match="batch_size was 8, is 4; epochs was 3, is 5"):
        runs.run(runs.model(), folder, resume=True, batch_size=4, epochs=5)
    with pytest.raises(
        ResumeError, match=r"settings: validation_batch_size was None, is 3; validation_freq was 1, is \[2\]"
    ):
        runs.run(runs.model(), folder, resume=True, validation_freq=[2], validation_batch_size=3)
    with pytest.raises(ResumeError, match="seed was 0, is 1"):
        runs.run(runs.model(seed=1), folder, resume=True)
    with pytest.raises(ResumeError, match=r"data\.labels was \d+, is \d+"):
        runs.run(runs.model(), folder, resume=True, y=labels(runs.EXAMPLES, seed=9))


@pytest.mark.slow  # test_inexact.py has each difference of a smaller run
def test_resume_with_another_program_is_refused_unless_inexact(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    with runs.stopped(SystemExit):
        runs.run(runs.model(), folder, runs.Stops(3, runs.terminate))
    with pytest.raises(ResumeError, match="another program than that of the saved run"):
        runs.run(runs.model(loss=resfit.losses.CrossEntropy(label_smoothing=0.1)), folder, resume=True)
    found = runs.run(runs.model(), folder, resume="inexact", batch_size=4, epochs=5)
    assert found["epoch"] == [0, 1, 2, 3, 4]
    assert "was saved with other batch_size, epochs" in caplog.text


def test_a_new_run_does_not_overwrite_a_folder_that_holds_a_run(tmp_path: Path) -> None:
    with runs.stopped(SystemExit):
        runs.run(runs.model(), tmp_path, runs.Stops(3, runs.terminate))
    with pytest.raises(ResumeError, match="holds checkpoints of a run"):
        runs.run(runs.model(), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"resume": True, "callbacks": []}, "no Checkpoint callback, so the folder of the run is unknown"),
        ({"resume": "yes", "callbacks": []}, "True, False or 'inexact', got 'yes'"),
        ({"callbacks": [Checkpoint("a"), Checkpoint("b")]}, "2 Checkpoint callbacks"),
    ],
)
def test_arguments_that_cannot_resume_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ResumeError, match=said):
        runs.small(PlainNet).fit(**runs.arrays(), verbose=0, **arguments)


def test_resume_with_another_network_is_refused(tmp_path: Path) -> None:
    with runs.stopped(SystemExit):
        runs.run(runs.model(), tmp_path, runs.Stops(3, runs.terminate))
    with pytest.raises(ResumeError, match="another network or optimizer"):
        runs.run(runs.model(optimizer="sgd"), tmp_path, resume=True)


def test_a_callback_can_request_a_checkpoint(tmp_path: Path) -> None:
    class Asks(resfit.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.request_checkpoint()

    made = runs.small(PlainNet)
    made.fit(**runs.arrays(), callbacks=[Asks(), Checkpoint(tmp_path, keep=100)], verbose=0)
    assert len([path for path in tmp_path.iterdir() if path.name.isdigit()]) == 3 + 1 + 1  # batches, epoch, end
    with pytest.raises(CallbackError, match="without a Checkpoint callback"):
        made.fit(**runs.arrays(), callbacks=[Asks()], verbose=0)


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path: Path) -> None:
    made = runs.small(PlainNet)
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0])

    class Says(resfit.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["score"] = next(losses)

    keep = Checkpoint(tmp_path, keep=1, best="score", mode="min")
    made.fit(**runs.arrays(), epochs=5, callbacks=[Says(), keep], verbose=0)
    # Of the second epoch; that of the end, after the five of the epochs; and that of the last, for more of them.
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["1", "4", "5"]
