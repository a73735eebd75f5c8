"""History is plain data: one float per epoch and name."""

import json
from typing import Any

import numpy as np
import pytest
from flax import nnx

from resfit.callbacks import Callback, History
from resfit.callbacks.logs import LazyLogs
from tests.helpers import PlainNet, compiled, fit, images, labels


@pytest.fixture(scope="module")
def model() -> Any:
    return compiled(PlainNet(rngs=nnx.Rngs(0)))


def test_history_contains_floats_that_json_can_store(model: Any) -> None:
    history = fit(model, epochs=2, validation_data=(images(8), labels(8)))
    assert list(history.history) == ["loss", "val_loss", "accuracy", "val_accuracy"]
    assert all(type(value) is float for values in history.history.values() for value in values)
    assert json.loads(json.dumps(history.history)) == history.history
    assert history.epoch == [0, 1]
    assert history is model.history
    assert history.params == {"verbose": 0, "epochs": 2, "steps": 3}


def test_history_holds_the_validated_epochs_only_and_their_numbers(model: Any) -> None:
    history = fit(model, epochs=5, validation_data=(images(8), labels(8)), validation_freq=[2, 4])
    assert min(history.history["val_loss"]) > 0
    assert history.epochs["val_loss"] == [1, 3]
    assert history.epochs["loss"] == history.epoch
    assert history.validations["loss"] == history.history["val_loss"]


def test_a_checkpoint_of_an_earlier_version_is_read_without_its_gaps() -> None:
    history, state = History(), History().state_dict()
    del state["epochs"]
    matrix = np.eye(2)
    history.load_state_dict({**state, "epoch": [0, 1], "history": {"val_loss": [None, 0.5], "matrix": [matrix] * 2}})
    assert history.history == {"val_loss": [0.5], "matrix": [[[1, 0], [0, 1]]] * 2}
    assert history.epochs == {"val_loss": [1], "matrix": [0, 1]}


def test_a_value_that_appears_late_or_disappears_has_only_its_epochs(model: Any) -> None:
    class Sometimes(Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch in (1, 2):
                logs["extra"] = float(epoch)

    history = fit(model, epochs=4, callbacks=[Sometimes()])
    assert (history.history["extra"], history.epochs["extra"]) == ([1.0, 2.0], [1, 2])


def test_a_second_fit_returns_a_new_history(model: Any) -> None:
    first = fit(model, epochs=2)
    kept = dict(first.history)
    second = fit(model, epochs=1)
    assert first.history == kept
    assert len(second.history["loss"]) == 1


def test_one_instance_resets_in_a_second_fit(model: Any) -> None:
    mine = History()
    fit(model, epochs=2, callbacks=[mine])
    fit(model, epochs=1, callbacks=[mine])
    assert mine.epoch == [0]
    assert mine.history == model.history.history


def test_times_are_separate_from_results(model: Any) -> None:
    history = fit(compiled(PlainNet(rngs=nnx.Rngs(0))), epochs=3)
    assert len(history.timings["epoch_seconds"]) == 3
    assert all(seconds > 0 for seconds in history.timings["epoch_seconds"])
    assert history.timings["first_step_seconds"] > history.timings["first_step_compile_seconds"] > 0
    assert "seconds" not in " ".join(history.history)


def test_only_a_fit_that_compiled_waits_once_for_its_first_step(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    monkeypatch.setattr(LazyLogs, "wait", lambda logs: waits.append(logs.ready()))
    compiling = fit(compiled(PlainNet(rngs=nnx.Rngs(0))), epochs=2)
    assert len(waits) == 1
    assert "first_step_seconds" in compiling.timings
    fit(model)
    waits.clear()
    assert not {"first_step_seconds", "first_step_compile_seconds"} & set(fit(model, epochs=2).timings)
    assert waits == []


def test_the_first_step_is_timed_to_its_end_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the sums immediately after the measured time does not wait."""
    ready = []
    wait = LazyLogs.wait
    monkeypatch.setattr(LazyLogs, "wait", lambda logs: (wait(logs), ready.append(logs.ready())))
    fit(compiled(PlainNet(rngs=nnx.Rngs(0))))
    assert ready == [True]


def test_plot_draws_one_panel_per_value_and_skips_missing_epochs(model: Any) -> None:
    history = fit(model, epochs=4, validation_data=(images(8), labels(8)), validation_freq=2)
    figure = history.plot()
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert set(panels) >= {"loss", "accuracy"}
    training, validation = panels["loss"].get_lines()[:2]
    assert training.get_ydata().tolist() == history.history["loss"]
    assert validation.get_xdata().tolist() == [2, 4]
