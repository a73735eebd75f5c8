"""Batches that a thread puts on the device: the same results, and no work of the main thread on the data."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.data.sources.arrays import ArraySource
from resfit.errors import DataError
from resfit.trainer.devices.placement import Placement
from tests.helpers import BATCH, PlainNet, assert_same, compiled, fit, images, labels


@pytest.fixture(params=[False, True], ids=["main_thread", "ahead"])
def ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Feed as on a CPU, or as on an accelerator."""
    monkeypatch.setattr(Placement, "feeds_ahead", property(lambda self: request.param))
    return bool(request.param)


def plain(**arguments: Any) -> Any:
    return compiled(PlainNet(rngs=nnx.Rngs(0)), **arguments)


def results(**arguments: Any) -> Any:
    model = plain(**arguments)
    history = fit(model, epochs=2, validation_data=(images(11), labels(11))).history
    x = images(11)
    return history, model.get_weights(), model.evaluate(x, labels(11), verbose=0), model.predict(x, verbose=0)


@pytest.mark.parametrize("dispatch", ["jit", pytest.param("eager", marks=pytest.mark.slow)])
def test_the_results_are_equal(dispatch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for feeds in (False, True):
        monkeypatch.setattr(Placement, "feeds_ahead", property(lambda self, feeds=feeds: feeds))
        found.append(results(dispatch=dispatch))
    assert_same(*found)


def test_the_main_thread_takes_no_example(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []
    take = ArraySource.take

    def watched(self: ArraySource, rows: Any) -> Any:
        if not isinstance(rows, slice) or rows != slice(None):  # the check of small arrays
            threads.append(threading.current_thread() is threading.main_thread())
        return take(self, rows)

    monkeypatch.setattr(ArraySource, "take", watched)
    model = plain()
    fit(model)
    model.evaluate(images(), labels(), verbose=0)
    model.predict(images(), verbose=0)
    assert threads
    assert set(threads) == {not ahead}


@pytest.mark.usefixtures("ahead")
def test_bad_values_raise_at_their_batch_with_the_number_of_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resfit.data.sources.arrays._CHECKED_AT_ONCE", 0)  # as for large arrays
    x, y = images(), labels()
    before = plain()
    fit(before, x[:BATCH], y[:BATCH], shuffle=False)
    x[BATCH + 3, 0, 0] = np.nan
    model = plain()
    with pytest.raises(DataError, match=rf"x\[{BATCH + 3}\] holds NaN or infinite values, as do 1 of the 8 examples"):
        fit(model, x, y, shuffle=False)
    assert_same(model.get_weights(), before.get_weights())
    x[BATCH + 3, 0, 0] = 0.0
    fit(model, x, y, shuffle=False)


def test_every_example_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resfit.data.sources.arrays._CHECKED_AT_ONCE", 0)
    source = ArraySource(images(), labels())
    checked: list[int] = []
    monkeypatch.setattr("resfit.data.sources.arrays.check_values", lambda x, y, numbers: checked.extend(numbers))
    for rows in (np.array([3, 1]), slice(4, 20), np.array([3, 0]), np.array([2, 2]), slice(0, 20), np.array([5])):
        source.take(rows)
    assert sorted(set(checked)) == list(range(20))
    assert len(checked) == 2 + 16 + 2 + 2


@pytest.mark.usefixtures("ahead")
def test_a_run_resumes_at_its_batch(tmp_path: Path) -> None:
    class Stop(resfit.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 1:
                raise KeyboardInterrupt

    def run(folder: Path, *callbacks: resfit.callbacks.Callback, **arguments: Any) -> Any:
        model = plain()
        saving = resfit.callbacks.Checkpoint(folder, every=1)
        fit(model, epochs=2, callbacks=[saving, *callbacks], **arguments)
        return model.get_weights()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Stop())
    assert_same(run(tmp_path / "cut", resume=True), whole)


def threads() -> set[str]:
    names = {thread.name for thread in threading.enumerate()}
    return {name for name in names if name.startswith(("resfit-prefetch", "resfit-data"))}


class Raises(resfit.callbacks.Callback):
    """Raises in the hooks of the first batch, and keeps the exception, as an interactive session does."""

    def __init__(self, hook: str, error: type[BaseException]) -> None:
        self.error, self.raised = error, False
        setattr(self, hook, self._hook)

    def _hook(self, batch: int, logs: Any = None) -> None:
        self.raised = True
        raise self.error("from the callback")


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "on_train_batch_end": lambda model, callback: fit(model, callbacks=[callback]),
    "on_test_batch_end": lambda model, callback: model.evaluate(
        images(), labels(), batch_size=2, verbose=0, callbacks=[callback]
    ),
    "on_predict_batch_end": lambda model, callback: model.predict(
        images(), batch_size=2, verbose=0, callbacks=[callback]
    ),
}


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("hook", CALLS)
@pytest.mark.parametrize("error", [ValueError, pytest.param(KeyboardInterrupt, marks=pytest.mark.slow)])
def test_no_thread_reads_on_after_an_exception_that_is_kept(hook: str, error: type[BaseException]) -> None:
    callback = Raises(hook, error)
    with pytest.raises(error) as kept:
        CALLS[hook](plain(), callback)
    assert callback.raised
    assert kept.tb is not None
    assert threads() == set()


@pytest.mark.usefixtures("ahead")
def test_no_thread_reads_on_after_epochs_of_a_number_of_steps() -> None:
    model = plain()
    fit(model, images(200), labels(200), steps_per_epoch=2)
    assert threads() == set()
