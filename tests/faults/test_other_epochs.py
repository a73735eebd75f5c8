"""A resume with another number of epochs: exact if nothing before the end depends on the number."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest

import resfit
from resfit.callbacks import Callback, Checkpoint, EarlyStopping, LearningRateScheduler
from resfit.errors import ResumeError
from tests import levels
from tests.faults import runs
from tests.helpers import PlainNet, assert_same, fit, images, labels, state_of
from tests.trainer.loop.test_schedule_of_a_fit import Rates

STEPS = 3  # of an epoch


def leaves(model: resfit.Model) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in state_of(model).leaves]


def go(
    folder: Path, epochs: int, *more: Callback, made: resfit.Model | None = None, keep: int = 2, **more_: Any
) -> Any:
    """Run with EarlyStopping, which restores the weights of the best epoch at the end."""
    model = made or runs.small(PlainNet)
    back = EarlyStopping("loss", mode="max", patience=9, restore_best_weights=True)  # to the worst, the first
    callbacks = [back, *more, Checkpoint(folder, keep=keep)]
    history = fit(model, epochs=epochs, callbacks=callbacks, **{"resume": True, **more_})
    return {"history": history.history, "epoch": history.epoch, "leaves": leaves(model)}


RATES = {"a number": 0.1, "a function of the step": optax.cosine_decay_schedule(0.1, 12)}


@pytest.mark.parametrize(
    ("kind", "keep"), levels.only([("a function of the step", 1)], itertools.product(RATES, (1, 2)))
)
def test_more_epochs_of_a_finished_run_match_a_run_of_that_many_epochs(kind: str, keep: int, tmp_path: Path) -> None:
    rate = RATES[kind]
    whole = go(tmp_path / "whole", 4, made=runs.small(PlainNet, learning_rate=rate))
    two = go(tmp_path / "run", 2, made=runs.small(PlainNet, learning_rate=rate), keep=keep)
    assert two["epoch"] == [0, 1]
    assert_same(go(tmp_path / "run", 4, made=runs.small(PlainNet, learning_rate=rate), keep=keep), whole)
    assert_same(
        go(tmp_path / "run", 4, made=runs.small(PlainNet, learning_rate=rate), keep=keep), whole
    )  # finished: returns at once


@pytest.mark.parametrize(("before", "now"), levels.only([(4, 2)], [(2, 3), (4, 2)]))
def test_a_stopped_run_resumes_exactly_to_another_number_of_epochs(before: int, now: int, tmp_path: Path) -> None:
    whole = go(tmp_path / "whole", now)
    with runs.stopped(SystemExit):
        go(tmp_path / "run", before, runs.Stops(2, runs.terminate))
    # More callbacks make no difference to what is saved of the others.
    assert_same(go(tmp_path / "run", now), whole)


def test_fewer_epochs_than_trained_are_refused_and_train_nothing_if_inexact(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    three = go(tmp_path, 3)
    with pytest.raises(ResumeError, match="epochs was 3, is 2"):
        go(tmp_path, 2)
    assert_same(go(tmp_path, 2, resume="inexact"), three)
    assert "The run is finished and trains no further: it was saved with other epochs" in caplog.text
    assert "resumes" not in caplog.text


def test_a_run_that_a_callback_stopped_trains_more_epochs_only_if_inexact(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = runs.small(PlainNet)
    stopped = go(tmp_path, 3, runs.Stops(1, lambda: setattr(model, "stop_training", True)), made=model)
    assert stopped["epoch"] == [0]
    assert_same(go(tmp_path, 4), stopped)
    assert "and would stop a run of 4 epochs there too. Nothing is trained" in caplog.text
    assert go(tmp_path, 4, resume="inexact")["epoch"] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_schedule_spans_the_new_number_of_epochs_after_an_inexact_resume(tmp_path: Path) -> None:
    schedule, rates = resfit.schedules.Cosine(0.1), Rates()
    go(tmp_path, 2, made=runs.small(PlainNet, learning_rate=schedule))
    with pytest.raises(ResumeError, match="epochs was 2, is 4"):
        go(tmp_path, 4, made=runs.small(PlainNet, learning_rate=schedule))
    found = go(tmp_path, 4, rates, made=runs.small(PlainNet, learning_rate=schedule), resume="inexact")
    over = schedule.over(epochs=4, steps_per_epoch=STEPS)
    np.testing.assert_allclose(rates.values, [float(over(step)) for step in range(2 * STEPS, 4 * STEPS)], rtol=1e-5)
    assert found["epoch"] == [0, 1, 2, 3]


Schedule = Callable[[Any], Any]


def linear(step: Any) -> Any:
    return 0.1 - step * 0.001


def rates_of(model: resfit.Model, *callbacks: Callback, **arguments: Any) -> list[float]:
    rates = Rates()
    fit(model, callbacks=[*callbacks, rates], **arguments)
    return [round(rate, 6) for rate in rates.values]


def expected(first: int, last: int) -> list[float]:
    return [round(float(linear(step)), 6) for step in range(first, last)]


def test_a_function_of_the_step_starts_at_initial_epoch_in_a_new_model() -> None:
    model = runs.small(PlainNet, learning_rate=linear)
    assert rates_of(model, initial_epoch=2, epochs=4) == expected(6, 12)
    assert rates_of(model, initial_epoch=4, epochs=5) == expected(12, 15)  # the model has taken steps: continues
    assert rates_of(model, epochs=1) == expected(15, 18)
    again = runs.small(PlainNet, learning_rate=linear)
    assert rates_of(again, epochs=1) == expected(0, 3)
    assert rates_of(again, initial_epoch=2, epochs=3) == expected(3, 6)  # counts what it has trained


def test_a_scheduler_by_steps_starts_at_initial_epoch() -> None:
    scheduler = LearningRateScheduler(linear, every=1)
    assert rates_of(runs.small(PlainNet), scheduler, initial_epoch=2, epochs=4) == expected(6, 12)
    assert rates_of(runs.small(PlainNet), scheduler, epochs=1) == expected(12, 15)


def test_a_function_of_the_step_warns_of_its_start_if_the_epoch_length_is_unknown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    batches = lambda: ((images(8), labels(8)) for _ in range(2))  # noqa: E731
    rates = Rates()
    runs.small(PlainNet, learning_rate=linear).fit(batches, initial_epoch=1, epochs=2, verbose=0, callbacks=rates)
    assert "begins at step 0" in caplog.text
    assert [round(rate, 6) for rate in rates.values] == expected(0, 2)


def test_a_run_with_initial_epoch_and_a_function_of_the_step_resumes_exactly(tmp_path: Path) -> None:
    def run(folder: str, *more: Callback) -> Any:
        return go(tmp_path / folder, 3, *more, made=runs.small(PlainNet, learning_rate=linear), initial_epoch=1)

    whole = run("whole")
    with runs.stopped(SystemExit):
        run("run", runs.Stops(2, runs.terminate))
    assert_same(run("run"), whole)
