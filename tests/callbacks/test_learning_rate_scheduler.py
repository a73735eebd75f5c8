"""LearningRateScheduler calls its function at the right steps, and the optimizer uses the result."""

import datetime
import functools
import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import optax
import pytest
from flax import nnx

from resfit.callbacks import LearningRateScheduler
from resfit.callbacks.base import Callback
from resfit.errors import CallbackError
from tests.callbacks.fakes import FakeModel, begin, counting_reads, play
from tests.helpers import PlainNet, compiled, counting_compilations, fit


def rates(schedule: Callable[..., Any], epochs: int, rate: float = 0.03) -> list[float]:
    return [logs["learning_rate"] for logs in play(LearningRateScheduler(schedule), [{}] * epochs, FakeModel(rate))]


def options_second(epoch: int, base: float = 1.0) -> float:
    return base / (epoch + 1)


def rate_by_name(epoch: int, lr: float | None = None) -> float:
    assert lr is not None
    return lr / 2


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        pytest.param(lambda epoch: 1 / (1 + epoch), [1, 1 / 2, 1 / 3], id="of_the_epoch"),
        pytest.param(lambda epoch, rate: rate / 2, [0.015, 0.0075, 0.00375], id="of_the_epoch_and_the_rate"),
        pytest.param(options_second, [1, 1 / 2, 1 / 3], id="an_option_in_second_place_is_no_rate"),
        pytest.param(rate_by_name, [0.015, 0.0075, 0.00375], id="a_rate_with_a_default_is_one_by_its_name"),
        pytest.param(functools.partial(lambda base, epoch: base * 2**-epoch, 1.0), [1, 1 / 2, 1 / 4], id="partial"),
        pytest.param(optax.linear_schedule(1.0, 0.0, 4), [1, 0.75, 0.5], id="optax"),
        pytest.param(lambda epoch: np.float32(0.25), [0.25] * 3, id="numpy"),
        pytest.param(lambda epoch: 0, [0, 0, 0], id="integer"),
    ],
)
def test_schedule_is_called_at_every_epoch(schedule: Callable[..., Any], expected: list[float]) -> None:
    np.testing.assert_allclose(rates(schedule, 3), expected, rtol=1e-6)


@pytest.mark.parametrize("value", [None, "0.1", True, [0.1], np.ones(1), float("nan"), float("inf"), -0.1, 1j])
def test_an_invalid_learning_rate_raises(value: Any) -> None:
    with pytest.raises(CallbackError, match="Expected a learning rate"):
        rates(lambda epoch: value, 1)


def test_an_error_inside_the_schedule_is_not_mistaken_for_another_signature() -> None:
    def broken(epoch: int, rate: float) -> float:
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        rates(broken, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"schedule": 0.1},
        {"schedule": lambda: 0.1},
        {"schedule": lambda a, b, c: 0.1},
        {"schedule": abs, "every": 0},
        {"schedule": abs, "every": "step"},
        {"schedule": abs, "every": datetime.timedelta(seconds=1)},
    ],
    ids=["no function", "no argument", "three arguments", "every 0", "unknown word", "time"],
)
def test_invalid_values_raise(arguments: dict[str, Any]) -> None:
    with pytest.raises(CallbackError, match="Expected"):
        LearningRateScheduler(**arguments)


def test_verbose_reports_changes_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "resfit"):
        play(LearningRateScheduler(lambda epoch: 0.5, verbose=1), [{}] * 3)
    assert caplog.messages == ["LearningRateScheduler: learning rate 0.5 from epoch 0."]


def test_a_second_fit_and_a_resumed_run_continue_the_step_count() -> None:
    def steps(callback: LearningRateScheduler, n: int) -> list[float]:
        model = begin(callback)
        if callback is resumed:
            callback.load_state_dict(json.loads(json.dumps(first.state_dict())))
        callback.on_epoch_begin(0, {})
        for i in range(n):
            callback.on_train_batch_begin(i, {})
            callback.on_train_batch_end(i, {})
        return model.rates_set[1:]  # the first assignment checks that the learning rate can be set

    def schedule(step: int) -> float:
        return float(step)

    first, again, resumed = (LearningRateScheduler(schedule, every=2) for _ in range(3))
    assert steps(first, 5) == [0, 2, 4]
    assert [*steps(again, 5), *steps(again, 3)] == [0, 2, 4, 6]
    assert steps(resumed, 3) == [6]


class Rates(Callback):
    """Record the learning rate that the optimizer used in each step, from the state."""

    def __init__(self) -> None:
        self.used: list[float] = []
        self.logged: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.used.append(self.model.learning_rate)
        self.logged.append(logs["learning_rate"])


def test_per_step_every_step_uses_the_scheduled_rate_without_reads_or_new_compilations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    fit(model)
    reads = counting_reads(monkeypatch)
    schedule = LearningRateScheduler(lambda step: 0.1 / (1 + step), every=1)
    with counting_compilations() as compilations:
        history = fit(model, epochs=2, callbacks=[schedule])
    assert reads.reads == 2  # by the loop itself, at the end of each epoch
    assert compilations == []
    np.testing.assert_allclose(history.history["learning_rate"], [0.1 / 3, 0.1 / 6], rtol=1e-6)

    recorded = Rates()
    fit(model, epochs=1, callbacks=[LearningRateScheduler(lambda step: 0.1 / (1 + step), every=1), recorded])
    np.testing.assert_allclose(recorded.used, [0.1, 0.05, 0.1 / 3], rtol=1e-6)
    np.testing.assert_allclose(recorded.logged, recorded.used, rtol=1e-6)


def test_a_learning_rate_of_zero_stops_learning_and_another_one_resumes_it() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    fit(model)
    before = model.get_weights()
    fit(model, epochs=1, callbacks=[LearningRateScheduler(lambda epoch: 0.0)])
    after = model.get_weights()
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    fit(model, epochs=1, callbacks=[LearningRateScheduler(lambda epoch: 0.1)])
    assert any(not np.array_equal(a, b) for a, b in zip(after, model.get_weights(), strict=True))
