"""What a callback remembers survives a resume: cut anywhere, a run ends as if it had never stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from resfit.callbacks import Callback, EarlyStopping, History, ModelCheckpoint
from tests.callbacks.fakes import FakeModel, batch, begin

LOSSES = [5.0, 3.0, 4.0, 2.5, 2.75, 2.625, 2.0]
BATCHES = 3


class Watched(FakeModel):
    """A model whose weights are the number of the epoch, and which only notes where it would be saved."""

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
    """A state as a checkpoint gives it back: JSON, and arrays beside it."""
    leaves, tree = jax.tree.flatten(state)
    arrays = {i: np.copy(leaf) for i, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray)}
    plain = json.loads(json.dumps([None if i in arrays else leaf for i, leaf in enumerate(leaves)]))
    restored: dict[str, Any] = jax.tree.unflatten(tree, [arrays.get(i, leaf) for i, leaf in enumerate(plain)])
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
    for name in ("epoch_seconds", "data_wait"):  # wall-clock time is no result
        state.pop(name, None)
    return {"weights": model.weights, "files": model.files, "stopped": model.stop_training, "state": state}


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
def test_a_run_that_was_cut_ends_like_one_that_was_not(make: Callable[[], Callback], cut: int) -> None:
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


def test_a_callback_without_a_memory_has_an_empty_state() -> None:
    callback = Callback()
    assert callback.state_dict() == {}
    callback.load_state_dict({})
