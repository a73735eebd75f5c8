"""The state of a callback survives a resume: a run that is cut anywhere ends as the uninterrupted run."""

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from resfit.callbacks import Callback, Checkpoint, EarlyStopping, History, ModelCheckpoint
from resfit.data.states import packed, unpacked
from resfit.errors import CallbackError
from resfit.trainer.checkpoint.saved_run import SavedRun
from resfit.trainer.loop.callback_list import CallbackList
from tests.callbacks.fakes import FakeModel, batch, begin
from tests.helpers import compiled, fit

LOSSES = [5.0, 3.0, 4.0, 2.5, 2.75, 2.625, 2.0]
BATCHES = 3


class Watched(FakeModel):
    """A model whose weights are the number of the epoch. It only records where it would be saved."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = [np.array(-1)]
        self.files: list[str] = []

    keeps_averages, validation_weights = False, "raw"

    def get_weights(self, weights: str = "raw") -> list[np.ndarray]:
        return [array.copy() for array in self.weights]

    def set_weights(self, weights: list[np.ndarray], averages: None = None) -> None:
        self.weights = weights

    def save(self, path: Path, weights: str = "raw") -> None:
        self.files.append(path.stem)


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state as a checkpoint restores it."""
    restored: dict[str, Any] = unpacked(packed(state))
    return restored


def run(callback: Callback, model: Watched, first: int, last: int) -> None:
    for epoch in range(first, last):
        if model.stop_training:
            break
        callback.on_epoch_begin(epoch, {})
        for i in range(BATCHES):
            callback.on_train_batch_end(i, batch(LOSSES[epoch]))
        model.weights = [np.array(epoch)]
        callback.on_epoch_end(epoch, {"loss": LOSSES[epoch], "val_loss": LOSSES[epoch]})


def result(callback: Callback, model: Watched) -> dict[str, Any]:
    callback.on_train_end({})
    state = callback.state_dict()
    for name in ("epoch_seconds", "data_wait"):  # elapsed time is not a result
        state.pop(name, None)
    return {"weights": model.weights, "files": model.files, "stopped": model.stop_training, "state": state}


class _SetsRate(Callback):
    def set_model(self, model: Any) -> None:
        super().set_model(model)
        model.learning_rate = 0.05


def test_a_learning_rate_that_set_model_changes_is_the_one_that_a_resumed_run_needs(tmp_path: Path) -> None:
    fit(compiled(learning_rate=0.1), callbacks=[Checkpoint(tmp_path), _SetsRate()])
    resumed = fit(compiled(learning_rate=0.05), callbacks=[Checkpoint(tmp_path)], epochs=2, resume=True)
    assert resumed.epoch == [0, 1]


@pytest.mark.parametrize("cut", range(len(LOSSES)))
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: EarlyStopping(patience=2, restore_best_weights=True), id="early_stopping"),
        pytest.param(lambda: EarlyStopping(patience=3, baseline=2.25), id="early_stopping_with_baseline"),
        pytest.param(lambda: ModelCheckpoint("{epoch}.safetensors", save_best_only=True), id="best_models"),
        pytest.param(lambda: ModelCheckpoint("{epoch}-{batch}.safetensors", save_freq=4), id="models_by_step"),
        pytest.param(History, id="history"),
    ],
)
def test_a_run_that_was_cut_ends_as_an_uninterrupted_run(make: Callable[[], Callback], cut: int) -> None:
    whole, model = make(), Watched()
    begin(whole, model)
    run(whole, model, 0, len(LOSSES))
    expected = result(whole, model)

    first, second, model = make(), make(), Watched()
    begin(first, model)
    run(first, model, 0, cut)
    begin(second, model)
    second.load_state_dict(saved(first.state_dict()))
    run(second, model, cut, len(LOSSES))
    jax.tree.map(np.testing.assert_array_equal, result(second, model), expected)


def test_a_saved_state_is_a_copy_that_later_epochs_do_not_change() -> None:
    callback, model = History(), Watched()
    begin(callback, model)
    run(callback, model, 0, 2)
    state = callback.state_dict()
    run(callback, model, 2, 4)
    assert state["history"]["loss"] == LOSSES[:2]
    assert state["epoch"] == [0, 1]


def test_a_callback_without_a_state_has_an_empty_state_dict() -> None:
    callback = Callback()
    assert callback.state_dict() == {}
    callback.load_state_dict({})


class Remembers(Callback):
    """A callback with an arbitrary state."""

    def __init__(self, held: Any = None) -> None:
        self.held = held

    def state_dict(self) -> dict[str, Any]:
        return {"held": self.held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.held = state["held"]


def test_the_state_of_a_callback_is_restored_exactly_through_a_run(tmp_path: Path) -> None:
    held = {0: (1, 2), "__array__": collections.Counter("aab"), (3,): {np.float32(0.5)}, 1: [b"", None]}
    fit(compiled(), callbacks=[Remembers(held), Checkpoint(tmp_path)])
    again = Remembers()
    fit(compiled(), callbacks=[again, Checkpoint(tmp_path)], resume=True)
    assert repr(again.held) == repr(held)


def test_a_state_that_a_checkpoint_cannot_store_ends_the_run_at_the_first_checkpoint_and_is_named(
    tmp_path: Path,
) -> None:
    with pytest.raises(CallbackError, match=r"Remembers\.state_dict\(\)\['held'\]\[1\] is a builtins\.object, which"):
        fit(compiled(), epochs=2, callbacks=[Remembers([0, object()]), Checkpoint(tmp_path, every=1)])


def test_callbacks_of_classes_with_the_same_name_keep_separate_states() -> None:
    other = type("Remembers", (Callback,), {key: vars(Remembers)[key] for key in ("state_dict", "load_state_dict")})
    first, second = Remembers(1), other()
    second.held = 2
    states = CallbackList([first, second], None, {}).state_dicts()  # type: ignore[arg-type]
    first.held = second.held = 0
    CallbackList([first, second], None, {}).load_state_dicts(states)  # type: ignore[arg-type]
    assert (first.held, second.held) == (1, 2)


def test_a_checkpoint_of_the_first_format_is_read() -> None:
    progress = {"epoch": 1, "logs": {"loss": 0.5, "recall": np.ones(2)}, "validated": {}}
    saved = SavedRun({}, {"callbacks": {"Remembers": {"held": {"0": [1]}}}, "progress": progress}).upgraded()
    again = Remembers()
    CallbackList([again], None, {}).load_state_dicts(saved.facts["callback_states"])  # type: ignore[arg-type]
    assert again.held == {"0": [1]}
    assert saved.progress.logs["loss"] == 0.5
