"""ReduceLROnPlateau does the same as Keras's on made-up logs, and works in a real fit."""

import json
import logging
from typing import Any

import numpy as np
import optax
import pytest
from flax import nnx

import resfit
from resfit.callbacks import ReduceLROnPlateau
from resfit.errors import CallbackError
from tests.callbacks.fakes import FakeModel, begin, play
from tests.helpers import PlainNet, compiled, counting_compilations, fit


def rates(callback: ReduceLROnPlateau, losses: list[float], rate: float = 0.1) -> list[float]:
    """Return the learning rate of each epoch, and the one after the last."""
    model = FakeModel(rate)
    logs = play(callback, [{"val_loss": loss} for loss in losses], model)
    return [*(entry["learning_rate"] for entry in logs), model.learning_rate]


@pytest.mark.parametrize(
    ("arguments", "losses", "expected"),
    [
        pytest.param({"patience": 1, "min_delta": 100}, [1, 1], [0.1, 0.1, 0.01], id="after_patience"),
        pytest.param({"patience": 0}, [1, 1, 1], [0.1, 0.1, 0.01, 0.001], id="patience_0_is_patience_1"),
        pytest.param({"patience": 2}, [1, 1, 1, 1, 1], [0.1, 0.1, 0.1, 0.01, 0.01, 0.001], id="patience_2"),
        pytest.param({"patience": 1}, [5, 4, 3, 2], [0.1] * 5, id="not_while_it_improves"),
        pytest.param({"patience": 2}, [3, 3, 2, 2, 1], [0.1] * 6, id="an_improvement_starts_the_count_again"),
        pytest.param({"patience": 1}, [1, 1 - 1e-5], [0.1, 0.1, 0.01], id="a_tiny_improvement_is_none"),
        pytest.param(
            {"patience": 1, "cooldown": 2},
            [1, 1, 1, 1],
            [0.1, 0.1, 0.01, 0.01, 0.001],
            id="reduced_twice_with_cooldown",
        ),
        pytest.param({"patience": 1, "min_lr": 0.005}, [1] * 4, [0.1, 0.1, 0.01, 0.005, 0.005], id="down_to_min_lr"),
        pytest.param({"patience": 1, "factor": 0.5}, [1] * 3, [0.1, 0.1, 0.05, 0.025], id="factor"),
        pytest.param({"patience": 1}, [float("nan")] * 3, [0.1, 0.01, 0.001, 0.0001], id="nan_is_no_improvement"),
    ],
)
def test_the_learning_rate_falls_when_the_loss_stops_improving(
    arguments: dict[str, Any], losses: list[float], expected: list[float]
) -> None:
    np.testing.assert_allclose(rates(ReduceLROnPlateau(**arguments), losses), expected, rtol=1e-6)


def test_min_lr_is_reached_exactly_and_set_once() -> None:
    model = FakeModel(0.1)
    play(ReduceLROnPlateau(patience=1, min_lr=0.005), [{"val_loss": 1.0}] * 8, model)
    assert model.rates_set[-1] == 0.005
    assert model.rates_set.count(0.005) == 1


def test_a_higher_accuracy_is_better() -> None:
    callback = ReduceLROnPlateau("val_accuracy", patience=1)
    logs = play(callback, [{"val_accuracy": value} for value in (0.1, 0.2, 0.15, 0.3)])
    np.testing.assert_allclose([entry["learning_rate"] for entry in logs], [0.1, 0.1, 0.1, 0.01], rtol=1e-6)
    assert callback.best == 0.3


def test_one_object_resets_in_a_second_fit() -> None:
    callback = ReduceLROnPlateau(patience=2, cooldown=3)
    first, second = rates(callback, [1.0] * 4), rates(callback, [9.0] * 4)
    assert first == second


def test_a_missing_value_is_reported_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = FakeModel()
    logs = play(ReduceLROnPlateau(patience=1), [{"loss": 1.0}] * 3, model)
    assert model.learning_rate == logs[-1]["learning_rate"]
    assert "'val_loss', which is not in the logs. Expected one of ['learning_rate', 'loss']" in caplog.text


def test_verbose_reports_the_new_learning_rate(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "resfit"):
        play(ReduceLROnPlateau(patience=1), [{"val_loss": 1.0}] * 2)
        assert caplog.text == ""
        play(ReduceLROnPlateau(patience=1, verbose=1), [{"val_loss": 1.0}] * 2)
    assert "ReduceLROnPlateau: learning rate 0.01 after epoch 1." in caplog.text


def test_a_resumed_run_continues_counting() -> None:
    losses = [{"val_loss": value} for value in (3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0)]

    def callback() -> ReduceLROnPlateau:
        return ReduceLROnPlateau(patience=2, cooldown=1)

    whole = FakeModel()
    play(callback(), losses, whole)
    for cut in range(1, len(losses)):
        first, second = callback(), callback()
        model = FakeModel()
        play(first, losses[:cut], model)
        begin(second, model)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for i, logs in enumerate(losses[cut:], cut):
            second.on_epoch_begin(i, {})
            second.on_epoch_end(i, dict(logs))
        assert model.learning_rate == whole.learning_rate, cut


@pytest.mark.parametrize(
    "arguments", [{"factor": 1.0}, {"factor": 2.0}, {"factor": 0.0}, {"patience": -1}, {"cooldown": -1}, {"mode": "up"}]
)
def test_invalid_values_raise(arguments: dict[str, Any]) -> None:
    with pytest.raises(CallbackError, match="Expected"):
        ReduceLROnPlateau(**arguments)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"optimizer": "sgd", "learning_rate": optax.constant_schedule(0.1)},
        {"optimizer": optax.sgd(0.1), "learning_rate": None},
    ],
    ids=["schedule", "optax object"],
)
@pytest.mark.parametrize("callback", [ReduceLROnPlateau(), resfit.callbacks.LearningRateScheduler(lambda epoch: 0.1)])
def test_a_learning_rate_that_cannot_be_set_raises_before_the_first_step(
    optimizer: dict[str, Any], callback: resfit.callbacks.Callback
) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), **optimizer)
    before = model.get_weights()
    with pytest.raises(CallbackError, match=f"{type(callback).__name__} sets the learning rate"):
        fit(model, callbacks=[callback])
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_in_a_fit_the_learning_rate_falls_without_compiling_again_and_history_shows_it() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    callback = ReduceLROnPlateau("loss", patience=1, min_delta=1e3)
    fit(model)
    with counting_compilations() as compilations:
        history = fit(model, epochs=4, callbacks=[callback])
    np.testing.assert_allclose(history.history["learning_rate"], [0.1, 0.1, 0.01, 0.001], rtol=1e-6)
    assert all(type(rate) is float for rate in history.history["learning_rate"])
    assert compilations == []
    assert model.learning_rate == pytest.approx(1e-4)
