"""The kit for callbacks: all callbacks of resfit pass it, and it finds each kind of mistake."""

import datetime
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from resfit import callbacks
from resfit.callbacks import Callback
from resfit.errors import CallbackCheckError, CallbackError
from resfit.testing import check_callback
from resfit.testing.written_files import written_files
from tests import levels


class Writer:
    """The methods that CLUMetricWriter and WeightsAndBiases need."""

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        pass

    def flush(self) -> None:
        pass

    def log(self, values: dict[str, Any], **_: Any) -> None:
        pass

    def define_metric(self, name: str, **_: Any) -> None:
        pass


def tensorboard() -> Callback:
    pytest.importorskip("tensorboardX")
    return callbacks.TensorBoard(update_freq=7)


BUILT_IN: dict[str, list[Callable[[], Callback]]] = {
    "CLUMetricWriter": [lambda: callbacks.CLUMetricWriter(Writer(), every=5)],
    "CSVLogger": [lambda: callbacks.CSVLogger("log.csv")],
    "EarlyStopping": [
        lambda: callbacks.EarlyStopping(patience=1),
        lambda: callbacks.EarlyStopping("loss", patience=3, restore_best_weights=True),
    ],
    "History": [callbacks.History],
    "JSONLogger": [lambda: callbacks.JSONLogger("log.jsonl", every=5)],
    "LambdaCallback": [lambda: callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs["loss"])],
    "LearningRateScheduler": [
        lambda: callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2),
        lambda: callbacks.LearningRateScheduler(lambda step: 0.1 / (step + 1), every=5),
    ],
    "ModelCheckpoint": [
        lambda: callbacks.ModelCheckpoint("best.safetensors", save_best_only=True),
        lambda: callbacks.ModelCheckpoint("{epoch}-{batch}.safetensors", save_freq=7),
        lambda: callbacks.ModelCheckpoint("runs/{epoch}.safetensors", keep=2),
    ],
    "ProgressBar": [lambda: callbacks.ProgressBar(2)],
    "ReduceLROnPlateau": [lambda: callbacks.ReduceLROnPlateau(patience=1, cooldown=1)],
    "StochasticWeightAveraging": [lambda: callbacks.StochasticWeightAveraging(0, learning_rate=0.05)],
    "SwapEMAWeights": [callbacks.SwapEMAWeights, lambda: callbacks.SwapEMAWeights(swap_on_epoch=True)],
    "TensorBoard": [tensorboard],
    "TerminateOnNaN": [callbacks.TerminateOnNaN],
    "Throughput": [callbacks.Throughput],
    "Timer": [lambda: callbacks.Timer(datetime.timedelta(hours=1))],
    "WeightsAndBiases": [lambda: callbacks.WeightsAndBiases(Writer(), every=4)],
}


def test_every_callback_of_resfit_is_checked() -> None:
    # The profiler waits for the device on purpose, Checkpoint refuses a second run, and RollbackOnNaN a fit without a
    # Checkpoint. They have separate tests.
    assert {*BUILT_IN, "Profiler", "Checkpoint", "RollbackOnNaN", "Callback"} == set(callbacks.__all__)


# One callback with a state and one with files run in `make test`.
QUICK = {"EarlyStopping1", "ModelCheckpoint2"}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=f"{name}{i}", marks=() if f"{name}{i}" in QUICK else pytest.mark.slow)
        for name, makes in BUILT_IN.items()
        for i, make in enumerate(makes)
    ],
)
def test_a_callback_of_resfit_has_no_problems_and_no_cost(make: Callable[[], Callback]) -> None:
    report = check_callback(make)
    assert report.costs == ()
    assert len(report.scenes) == len(set(report.scenes)) > 25


@pytest.mark.slow
def test_the_profiler_only_waits_at_the_two_ends_of_its_trace() -> None:
    (cost,) = check_callback(lambda: callbacks.Profiler("trace", start=10, stop=12)).costs
    assert "in 2 of 24 steps" in cost
    assert Path("trace").exists()


# --- one class for each mistake ---------------------------------------------------------------------------------------


class Misspelled(Callback):
    def on_epoch_ends(self, epoch: int, logs: Any = None) -> None:
        pass


class TakesNoLogs(Callback):
    def on_epoch_end(self, epoch: int) -> None:  # type: ignore[override]
        pass


class NeedsValidation(Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.last = logs["val_loss"]


class NeedsTraining(Callback):
    def on_train_begin(self, logs: Any = None) -> None:
        self.tests = 0

    def on_test_end(self, logs: Any = None) -> None:
        self.tests += 1


class NeedsItsBeginning(Callback):
    def on_train_begin(self, logs: Any = None) -> None:
        self.rows: list[float] = []

    def on_train_end(self, logs: Any = None) -> None:
        self.rows.clear()


class NeedsTheLogsOfAnEpoch(Callback):
    def on_train_end(self, logs: Any = None) -> None:
        self.last = logs["loss"]


class ServesOneFit(Callback):
    used = False

    def on_train_end(self, logs: Any = None) -> None:
        if self.used:
            raise RuntimeError("already closed")
        self.used = True


class TakesTheStopBack(Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.model.stop_training = False


class HidesExceptions(Callback):
    def on_exception(self, exception: BaseException) -> None:
        raise ValueError("something else")


class EatsLogs(Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.last = logs.pop("loss")


class LogsText(Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["comment"] = "fine"


class SavesAnObject(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"seen": [object()]}


class SavesWithTextAsKeys(Callback):
    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        self.losses = {}

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.losses[epoch] = logs["loss"]

    def state_dict(self) -> dict[str, Any]:
        return {"losses": {str(epoch): loss for epoch, loss in self.losses.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = state["losses"]
        self.first = self.losses[0]


class SavesNoCopy(Callback):
    def on_train_begin(self, logs: Any = None) -> None:
        self.losses: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.losses.append(logs["loss"])

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = state["losses"]


class Forgets(Callback):
    """A callback that halves the learning rate at the fourth epoch, but does not save the number of epochs."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.epochs = 0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs += 1
        if self.epochs == 4:
            self.model.learning_rate /= 2


class WritesInEveryProcess(Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        Path("losses.txt").write_text(str(logs["loss"]))


class RemovesInEveryProcess(Callback):
    def on_train_end(self, logs: Any = None) -> None:
        Path("losses.txt").unlink(missing_ok=True)


class StopsTheFirstProcess(Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if jax.process_index() == 0 and epoch == 2:
            self.model.stop_training = True


class EvaluatesInTheFirstProcess(Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if jax.process_index() == 0:
            self.model.evaluate(np.zeros((4, 2, 2, 1)), np.arange(4) % 3, verbose=0)


@pytest.mark.representatives(
    "Misspelled-on_epoch_ends, which is not a hook",
    "HidesExceptions-hides the exception of another callback behind ValueError: something else",
    "EatsLogs-removes 'loss' from the logs of on_epoch_end",
    "SavesNoCopy-later epochs change .*losses.*Expected a copy",
    "Forgets-resumed after epoch 0 ends with other values at .*learning_rate",
    "StopsTheFirstProcess-the processes end with different values at .*stop_training",
)
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Misspelled, "on_epoch_ends, which is not a hook"),
        (TakesNoLogs, r"raised CallbackError: TakesNoLogs.on_epoch_end cannot be called.*fit; fit with validation"),
        (NeedsValidation, r"raised KeyError: 'val_loss' \(in: fit; "),
        (NeedsTraining, "raised AttributeError.*'tests'.*in: evaluate with a new object"),
        (NeedsItsBeginning, "hides .* AttributeError.*another callback, before it, raises in on_train_begin"),
        pytest.param(NeedsTheLogsOfAnEpoch, "hides .* KeyError.*raises in on_epoch_begin", marks=pytest.mark.slow),
        (ServesOneFit, "RuntimeError: already closed.*in: fit, evaluate, predict and fit again with one object"),
        (TakesTheStopBack, r"stop_training to stay True \(in: another callback stops training in on_train_batch_end"),
        (HidesExceptions, "hides the exception of another callback behind ValueError: something else"),
        (EatsLogs, "removes 'loss' from the logs of on_epoch_end"),
        (LogsText, "'comment' = 'fine' to the logs. Expected numbers"),
        (
            SavesAnObject,
            r"state_dict\(\)\['seen'\]\[0\] is a builtins.object, which a checkpoint cannot hold. Expected",
        ),
        (SavesWithTextAsKeys, r"raised KeyError: 0 \(in: a resumed run\)"),
        (SavesNoCopy, r"later epochs change .*losses.*Expected a copy"),
        (Forgets, "resumed after epoch 0 ends with other values at .*learning_rate"),
        (WritesInEveryProcess, r"the second process writes \['losses.txt'\]\. .*jax.process_index\(\) is 0"),
        pytest.param(
            RemovesInEveryProcess,
            r"the second process writes \['losses.txt'\]\. .*only the first",
            marks=pytest.mark.slow,
        ),
        (StopsTheFirstProcess, "the processes end with different values at .*stop_training"),
        (EvaluatesInTheFirstProcess, r"different calls of model methods: \{'evaluate': 8\} and \{\}"),
    ],
)
def test_a_mistake_is_found_and_named(kind: type[Callback], message: str) -> None:
    with pytest.raises(CallbackCheckError, match=message) as caught:
        check_callback(kind)
    assert str(caught.value).startswith(kind.__name__)


class WritesInTheFirstProcess(Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if jax.process_index() == 0:
            Path("losses.txt").write_text(str(logs["loss"]))


class ServesOneProcess(Callback):
    def on_train_begin(self, logs: Any = None) -> None:
        if jax.process_count() > 1:
            raise CallbackError("one process only")


class EvaluatesInEveryProcess(Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        assert self.model.evaluate(np.zeros((4, 2, 2, 1)), np.arange(4) % 3, verbose=0)[0] > 0


@pytest.mark.representatives("WritesInTheFirstProcess")
@pytest.mark.parametrize("kind", [WritesInTheFirstProcess, ServesOneProcess, EvaluatesInEveryProcess])
def test_a_correct_callback_passes_in_two_processes(kind: type[Callback]) -> None:
    assert "two processes" in check_callback(kind).scenes
    assert jax.process_count() == 1


@pytest.mark.representatives("CSVLogger")
@pytest.mark.parametrize(
    "name", levels.only(["CSVLogger", "ModelCheckpoint"], ["CSVLogger", "JSONLogger", "ModelCheckpoint", "TensorBoard"])
)
def test_a_callback_of_resfit_that_writes_in_every_process_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resfit.callbacks.first_process.is_first", lambda: True)
    # ModelCheckpoint reads its own file, and a second process has not written a model.
    with pytest.raises(CallbackCheckError, match=r"the second process writes \['|in: two processes"):
        check_callback(BUILT_IN[name][-1])


def test_files_are_found_anywhere_and_caches_are_ignored(tmp_path: Path) -> None:
    cache = Path(jax.config.values["jax_compilation_cache_dir"])
    (tmp_path / "old").write_text("")
    with written_files() as files, written_files() as also:
        (tmp_path / "folder").mkdir()
        (tmp_path / "old").rename(tmp_path / "new")
        (tmp_path / "new").read_text()
        os.truncate(tmp_path / "new", 0)
        thread = threading.Thread(target=(tmp_path / "thread").touch)
        thread.start()
        thread.join()
        cache.mkdir(parents=True, exist_ok=True)
        (cache / "written_files").write_text("")
        (cache / "written_files").unlink()
        Path(os.devnull).write_text("")
    assert files == also == [str(tmp_path / name) for name in ("folder", "new", "thread")]
    (tmp_path / "later").touch()
    assert len(files) == 3


def test_a_make_function_with_another_result_raises() -> None:
    one = Callback()
    with pytest.raises(CallbackCheckError, match="a new object in every call"):
        check_callback(lambda: one)
    with pytest.raises(CallbackCheckError, match="returned a dict"):
        check_callback(dict)  # type: ignore[arg-type]


def test_all_mistakes_of_a_callback_are_listed() -> None:
    class Everything(HidesExceptions, LogsText, SavesAnObject):
        pass

    with pytest.raises(CallbackCheckError, match=r"3 problem\(s\)") as caught:
        check_callback(Everything)
    assert len(str(caught.value).splitlines()) == 4


class ReadsEveryStep(Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.last = logs["loss"]


class ReadsEveryTenth(Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch % 10 == 0:
            self.last = logs["loss"]


@pytest.mark.representatives("ReadsEveryTenth-3")
@pytest.mark.parametrize(("kind", "steps"), [(ReadsEveryStep, 24), (ReadsEveryTenth, 3)])
def test_waiting_for_the_device_is_a_cost_and_not_a_mistake(kind: type[Callback], steps: int) -> None:
    (cost,) = check_callback(kind).costs
    assert f"waits for the device in {steps} of 24 steps" in cost
