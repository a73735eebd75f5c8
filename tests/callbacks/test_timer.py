"""Timer stops the training after its duration, and not before."""

import datetime
import json
import logging
import types
from typing import Any

import pytest
from flax import nnx

from resfit.callbacks import Timer, timer
from resfit.errors import CallbackError
from tests.callbacks.fakes import begin
from tests.helpers import PlainNet, compiled, fit


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Replace the clock by one that the test moves."""
    fake = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(timer.time, "monotonic", lambda: fake.now)
    return fake


def steps_until_stop(callback: Timer, clock: types.SimpleNamespace, seconds: float, most: int = 20) -> int:
    for i in range(most):
        clock.now += seconds
        callback.on_train_batch_end(i, {})
        if callback.model.stop_training:
            return i + 1
    return most


def test_training_stops_at_the_first_batch_after_the_duration(clock: types.SimpleNamespace) -> None:
    callback = Timer(datetime.timedelta(seconds=10))
    begin(callback)
    assert steps_until_stop(callback, clock, 3.0) == 4
    assert callback.elapsed == 12.0


def test_a_second_fit_has_the_full_duration(clock: types.SimpleNamespace) -> None:
    callback = Timer(datetime.timedelta(seconds=10))
    for _ in range(2):
        begin(callback)
        assert steps_until_stop(callback, clock, 3.0) == 4
        callback.on_train_end({})
        clock.now += 1000
    assert callback.elapsed == 12.0


def test_a_rollback_neither_returns_time_nor_counts_time_twice(clock: types.SimpleNamespace) -> None:
    callback = Timer(datetime.timedelta(seconds=20))
    begin(callback)
    steps_until_stop(callback, clock, 3.0, most=2)
    state = callback.state_dict()
    steps_until_stop(callback, clock, 3.0, most=1)
    callback.load_state_dict(state)
    assert callback.elapsed == 9.0
    clock.now += 1.0
    assert callback.elapsed == 10.0


def test_a_resumed_run_has_the_remaining_time(clock: types.SimpleNamespace) -> None:
    first, second = Timer(datetime.timedelta(seconds=10)), Timer(datetime.timedelta(seconds=10))
    begin(first)
    assert steps_until_stop(first, clock, 3.0, most=2) == 2
    state = json.loads(json.dumps(first.state_dict()))
    clock.now += 1000
    begin(second)
    second.load_state_dict(state)
    assert steps_until_stop(second, clock, 3.0) == 2


@pytest.mark.parametrize("duration", [datetime.timedelta(), datetime.timedelta(seconds=-1), 10, None])
def test_an_invalid_duration_raises(duration: Any) -> None:
    with pytest.raises(CallbackError, match=r"positive datetime\.timedelta"):
        Timer(duration)


def test_a_stopped_fit_reports_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "resfit"):
        history = fit(
            compiled(PlainNet(rngs=nnx.Rngs(0))), epochs=5, callbacks=[Timer(datetime.timedelta(microseconds=1))]
        )
    assert history.epoch == [0]
    assert "Timer: training stops after 0:00:00.000001, at batch 0" in caplog.text
