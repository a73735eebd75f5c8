"""Test the callback of the package, including runs that are stopped and resumed."""

import numpy as np
import pytest
from resfit_best_epochs import BestEpochs

import resfit
from resfit.testing import check_callback


@pytest.mark.parametrize("monitor", ["loss", "val_loss", "a missing value"])
def test_it_passes_check_callback_without_costs(monitor: str) -> None:
    assert check_callback(lambda: BestEpochs(monitor)).costs == ()


def test_the_lowest_values_come_first_and_count_of_them_are_kept() -> None:
    callback = BestEpochs("val_loss", count=2)
    callback.on_train_begin()
    for epoch, loss in enumerate([3.0, 1.0, 2.0, 1.5]):
        callback.on_epoch_end(epoch, {"val_loss": loss})
    assert callback.best == [(1.0, 1), (1.5, 3)]


def test_a_second_run_starts_with_an_empty_list() -> None:
    callback = BestEpochs()
    for loss in (1.0, 5.0):
        callback.on_train_begin()
        callback.on_epoch_end(0, {"loss": loss})
    assert callback.best == [(5.0, 0)]


def test_in_a_fit_the_best_epoch_is_that_of_the_history() -> None:
    x = np.random.default_rng(0).normal(size=(32, 8, 8, 1)).astype("float32")
    y = (x.mean(axis=(1, 2, 3)) > 0).astype("int32")
    net = resfit.create_model("resnet20", num_classes=2, in_channels=1, depths=(1,), widths=(4,))
    model, best = resfit.Model(net), BestEpochs("val_loss", count=1)
    model.compile("adam", learning_rate=0.01)
    history = model.fit(x, y, batch_size=8, epochs=3, validation_split=0.25, verbose=0, callbacks=[best])
    losses = history.history["val_loss"]
    assert best.best == [(min(losses), losses.index(min(losses)))]


def test_a_count_that_is_not_positive_raises() -> None:
    with pytest.raises(ValueError, match="positive number of epochs, got 0"):
        BestEpochs(count=0)
