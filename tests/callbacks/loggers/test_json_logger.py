"""JSONLogger writes one strict JSON object per line and never waits for the device."""

import datetime
import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from resfit.callbacks import JSONLogger
from resfit.callbacks.loggers.metric_logger import MetricLogger, Moment, scalars
from resfit.errors import CallbackError
from tests.callbacks.fakes import FakeModel, SlowArray, batch, begin, counting_reads, lazy, play
from tests.helpers import PlainNet, compiled, fit, images, labels


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def entries(path: str = "log.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=refuse) for line in Path(path).read_text().splitlines()]


def epoch(callback: MetricLogger, number: int, losses: list[float]) -> None:
    callback.on_epoch_begin(number, {})
    for i, loss in enumerate(losses):
        callback.on_train_batch_end(i, batch(loss))
    callback.on_epoch_end(number, {"loss": losses[-1]})


def test_each_epoch_is_one_object_with_the_learning_rate() -> None:
    play(JSONLogger("a/log.jsonl"), [{"loss": 2.0}, {"loss": 1.0, "val_loss": 1.5}], FakeModel(0.5))
    assert entries("a/log.jsonl") == [
        {"epoch": 0, "step": 0, "loss": 2.0, "learning_rate": 0.5},
        {"epoch": 1, "step": 0, "loss": 1.0, "val_loss": 1.5, "learning_rate": 0.5},
    ]


def test_a_learning_rate_in_the_logs_is_used_and_a_model_without_one_writes_none() -> None:
    play(JSONLogger("log.jsonl"), [{"learning_rate": 0.25}], FakeModel(0.5))
    assert entries() == [{"epoch": 0, "step": 0, "learning_rate": 0.25}]
    play(JSONLogger("log.jsonl"), [{"loss": 1.0}], FakeModel(None))
    assert entries() == [{"epoch": 0, "step": 0, "loss": 1.0}]


def test_non_finite_values_are_strict_json_that_float_can_read() -> None:
    values = {"a": float("nan"), "b": float("inf"), "c": -np.inf, "d": np.array([1.0, np.nan]), "e": np.float32(2)}
    play(JSONLogger("log.jsonl"), [values], FakeModel(None))
    (entry,) = entries()
    np.testing.assert_equal([float(entry[name]) for name in "abce"], [np.nan, np.inf, -np.inf, 2.0])
    np.testing.assert_equal([float(value) for value in entry["d"]], [1.0, np.nan])


def test_every_n_steps_batches_are_written_before_their_epoch() -> None:
    callback = JSONLogger("log.jsonl", every=2)
    begin(callback, FakeModel(None))
    epoch(callback, 0, [1.0, 2.0, 3.0])
    epoch(callback, 1, [4.0, 5.0, 6.0])
    assert [(e["epoch"], e.get("batch"), e["step"], e["loss"]) for e in entries()] == [
        (0, 1, 2, 2.0), (0, None, 3, 3.0), (1, 0, 4, 4.0), (1, 2, 6, 6.0), (1, None, 6, 6.0),
    ]  # fmt: skip


def test_batches_can_be_written_at_a_time_interval() -> None:
    callback = JSONLogger("log.jsonl", every=datetime.timedelta(hours=1))
    begin(callback, FakeModel(None))
    epoch(callback, 0, [1.0, 2.0])
    assert ["batch" in entry for entry in entries()] == [False]
    callback = JSONLogger("log.jsonl", every=datetime.timedelta(microseconds=1))
    begin(callback, FakeModel(None))
    epoch(callback, 0, [1.0, 2.0])
    assert ["batch" in entry for entry in entries()] == [True, True, False]


def test_a_validation_within_an_epoch_has_its_own_line_and_one_at_the_end_is_in_the_line_of_the_epoch() -> None:
    def validate(callback: JSONLogger, loss: float) -> None:
        callback.on_test_begin({})
        callback.on_test_end({"loss": loss})

    callback = JSONLogger("log.jsonl", every=2)
    begin(callback, FakeModel(None))
    callback.on_epoch_begin(0, {})
    for i in range(5):
        callback.on_train_batch_end(i, batch(float(i)))
        if i in (1, 4):
            validate(callback, 10.0 + i)
        if i == 1:
            resumed = JSONLogger("log.jsonl", every=2)
            begin(resumed, FakeModel(None))
            resumed.load_state_dict(json.loads(json.dumps(callback.state_dict())))
            callback = resumed
    callback.on_epoch_end(0, {"loss": 4.0, "val_loss": 14.0})
    callback.on_train_end({})
    assert entries() == [
        {"epoch": 0, "batch": 1, "step": 2, "loss": 1.0},
        {"epoch": 0, "batch": 1, "step": 2, "val_loss": 11.0},
        {"epoch": 0, "batch": 3, "step": 4, "loss": 3.0},
        {"epoch": 0, "step": 5, "loss": 4.0, "val_loss": 14.0},
    ]
    validate(callback, 20.0)  # a separate evaluation is not part of the run
    assert len(entries()) == 4


@pytest.mark.parametrize("every", [0, -1, True, "batch", 1.5, None, datetime.timedelta()])
def test_an_invalid_interval_raises(every: Any) -> None:
    with pytest.raises(CallbackError, match="JSONLogger got every="):
        JSONLogger("log.jsonl", every=every)


def test_the_logger_never_waits_for_the_device() -> None:
    """The device is five steps behind. SlowArray fails if the logger reads it too early."""
    callback = JSONLogger("log.jsonl", every=1)
    begin(callback, FakeModel(None))
    callback.on_epoch_begin(0, {})
    steps = [SlowArray(float(i)) for i in range(20)]
    for i, step in enumerate(steps):
        if i >= 5:
            steps[i - 5].finish()
        callback.on_train_batch_end(i, lazy(step))
    assert [entry["loss"] for entry in entries()] == list(range(15))
    for step in steps:
        step.finish()
    callback.on_epoch_end(0, {})
    assert [entry.get("loss") for entry in entries()] == [*range(20), None]


def test_the_values_of_a_failed_step_are_left_out_and_the_exception_propagates() -> None:
    class Failed(SlowArray):
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            raise jax.errors.JaxRuntimeError("device lost")

    callback = JSONLogger("log.jsonl", every=1)
    begin(callback, FakeModel(None))
    callback.on_epoch_begin(0, {})
    done = SlowArray(1.0)
    callback.on_train_batch_end(0, lazy(done))
    callback.on_train_batch_end(1, lazy(Failed(2.0)))
    done.finish()
    callback.on_exception(RuntimeError())
    callback.on_train_end({})
    assert [entry["loss"] for entry in entries()] == [1.0]


def test_append_continues_the_file_and_without_it_every_fit_starts_a_new_one() -> None:
    callback = JSONLogger("log.jsonl")
    for _ in range(2):
        play(callback, [{"loss": 1.0}] * 2)
        assert len(entries()) == 2
    callback = JSONLogger("log.jsonl", append=True)
    for n in (4, 6):
        play(callback, [{"loss": 1.0}] * 2)
        assert len(entries()) == n


def test_only_the_first_process_writes_and_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    reads = counting_reads(monkeypatch)
    callback = JSONLogger("log.jsonl", every=1)
    begin(callback)
    epoch(callback, 0, [1.0, 2.0])
    callback.on_train_end({})
    assert not Path("log.jsonl").exists()
    assert reads.reads == 0


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("saved", range(7))
def test_a_resumed_run_writes_the_same_file_as_an_uninterrupted_run(saved: int, append: bool) -> None:
    """The run is saved after a batch, killed two batches later, and resumed from the saved batch."""

    def run(callback: JSONLogger, first: int, last: int) -> None:
        for i in range(first, last):
            if i % 3 == 0:
                callback.on_epoch_begin(i // 3, {})
            callback.on_train_batch_end(i % 3, batch(float(i)))
            if i % 3 == 2:
                callback.on_epoch_end(i // 3, {"loss": float(i)})

    def start(callback: JSONLogger) -> JSONLogger:
        begin(callback, FakeModel(None))
        callback.on_epoch_begin(0, {})
        return callback

    Path("log.jsonl").write_text('{"old": 1}\n')
    run(start(JSONLogger("log.jsonl", every=2, append=append)), 0, 9)
    whole = entries()

    Path("log.jsonl").write_text('{"old": 1}\n')
    killed = start(JSONLogger("log.jsonl", every=2, append=append))
    run(killed, 0, saved)
    state = json.loads(json.dumps(killed.state_dict()))
    run(killed, saved, saved + 2)
    resumed = start(JSONLogger("log.jsonl", every=2, append=append))
    resumed.load_state_dict(state)
    resumed.on_epoch_begin(saved // 3, {})
    run(resumed, saved, 9)
    assert entries() == whole


def test_a_resumed_run_warns_about_a_missing_file_and_continues(caplog: pytest.LogCaptureFixture) -> None:
    callback = JSONLogger("log.jsonl")
    begin(callback, FakeModel(None))
    callback.load_state_dict({"step": 10, "validated": None, "lines": 5})
    with caplog.at_level(logging.WARNING, "resfit"):
        epoch(callback, 5, [1.0])
    assert "has 0 lines, but the resumed run wrote 5" in caplog.text
    assert entries() == [{"epoch": 5, "step": 11, "loss": 1.0}]


def test_the_epochs_of_a_fit_equal_its_history_and_the_batches_equal_each_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = counting_reads(monkeypatch)
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    history = fit(model, epochs=2, validation_data=(images(9), labels(9)), callbacks=[JSONLogger("log.jsonl", every=3)])
    assert reads.reads == 2  # the loop itself reads the last of three batches
    written = [entry for entry in entries() if "batch" not in entry]
    for name, values in history.history.items():
        assert [entry[name] for entry in written] == values
    assert [(e["epoch"], e["batch"], e["step"]) for e in entries() if "batch" in e] == [(0, 2, 3), (1, 2, 6)]


def test_a_logger_without_a_write_method_raises() -> None:
    callback = MetricLogger()
    begin(callback)
    with pytest.raises(NotImplementedError, match="must override `write`"):
        epoch(callback, 0, [1.0])


def test_scalars_are_numbers_only() -> None:
    values = {"a": 1, "b": np.float32(2), "c": np.array([3, 4]), "d": np.eye(2), "e": "text", "f": True}
    assert scalars(values) == {"a": 1.0, "b": 2.0, "c_0": 3.0, "c_1": 4.0, "f": 1.0}
    assert Moment(1, None, 2)._asdict() == {"epoch": 1, "batch": None, "step": 2}


def test_a_user_file_beside_the_log_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl.new").write_text("mine")
    play(JSONLogger(tmp_path / "log.jsonl"), [{"loss": 2.0}, {"loss": 1.0}])
    assert (tmp_path / "log.jsonl.new").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2
