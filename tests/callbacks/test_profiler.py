"""The trace of Profiler contains the requested steps."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import nnx

from resfit.callbacks import Profiler
from resfit.callbacks.base import Callback
from resfit.errors import CallbackError
from tests.callbacks.fakes import batch, begin, counting_reads
from tests.helpers import PlainNet, compiled, fit


def steps_in_trace(folder: str) -> list[int]:
    """Return the marked steps of the one trace in a folder, in order."""
    (file,) = Path(folder).rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(file))
    events = [event for plane in data.planes for line in plane.lines for event in line.events]
    return [dict(event.stats)["step_num"] for event in events if event.name == "train"]


class Fails(Callback):
    """Raise at a batch."""

    def __init__(self, at: int) -> None:
        self._at = at

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == self._at:
            raise KeyError("mine")


def test_the_trace_contains_the_steps_from_start_to_before_stop_across_epochs() -> None:
    fit(compiled(PlainNet(rngs=nnx.Rngs(0))), epochs=3, callbacks=[Profiler("trace", start=4, stop=7)])
    assert steps_in_trace("trace") == [4, 5, 6]


def test_only_the_first_of_several_processes_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax.process_index", lambda: 1)
    callback = Profiler("trace", start=1, stop=2)
    begin(callback)
    for i in range(3):
        callback.on_train_batch_begin(i, {})
        callback.on_train_batch_end(i, batch(1.0))
    callback.on_train_end({})
    assert not Path("trace").exists()


def test_an_exception_ends_the_trace_and_another_one_can_start() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    with pytest.raises(KeyError, match="mine"):
        fit(model, callbacks=[Profiler("broken", start=0, stop=3), Fails(at=2)])
    assert steps_in_trace("broken") == [0, 1, 2]
    fit(model, callbacks=[Profiler("next", start=1, stop=10)])
    assert steps_in_trace("next") == [1, 2]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the calls that would start and stop a trace."""
    calls: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(f"start {folder}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def test_only_the_two_ends_of_the_trace_wait_for_the_device(monkeypatch: pytest.MonkeyPatch, traced: list[str]) -> None:
    reads = counting_reads(monkeypatch)
    callback = Profiler("logs", start=10, stop=20)
    begin(callback)
    for i in range(40):
        callback.on_train_batch_begin(i, {})
        callback.on_train_batch_end(i, batch(1.0))
    callback.on_train_end({})
    assert traced == [f"start {Path('logs').absolute()}", "stop"]
    assert reads.reads == 2


def test_a_run_that_ends_before_the_trace_starts_reports_it(
    caplog: pytest.LogCaptureFixture, traced: list[str]
) -> None:
    callback = Profiler("logs", start=1)
    begin(callback)
    callback.on_train_batch_begin(0, {})
    callback.on_train_batch_end(0, batch(1.0))
    with caplog.at_level(logging.WARNING, "resfit"):
        callback.on_train_end({})
    assert "training ended after 1 steps, before step 1" in caplog.text
    assert traced == []


@pytest.mark.parametrize("make", [lambda: Profiler("a", 5, 5), lambda: Profiler("a", -1, 5), lambda: Profiler("a", 20)])
def test_an_empty_range_of_steps_raises(make: Callable[[], Profiler]) -> None:
    with pytest.raises(CallbackError, match="Expected 0 <= start < stop"):
        make()
