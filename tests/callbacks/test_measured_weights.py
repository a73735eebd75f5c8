"""Callbacks that restore or save weights by a validation with averaged weights use the averages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.callbacks import Callback, EarlyStopping, ModelCheckpoint, SwapEMAWeights
from tests.helpers import PlainNet, assert_same, compiled, fit, images, labels

HELD_OUT = (images(6, seed=5), labels(6, seed=5))
LOSSES = [3.0, 1.0, 2.0, 2.5]  # of the validations: the second epoch is the best
BEST = 1


@pytest.fixture(scope="module")
def model() -> Any:
    return compiled(PlainNet(rngs=nnx.Rngs(0)), ema=0.9)


class Seen(Callback):
    """Write the values into the logs, and store both kinds of weights of every epoch."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.raw: list[Any] = []
        self.ema: list[Any] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.raw.append(self.model.get_weights())
        self.ema.append(self.model.get_weights("ema"))
        logs["loss"] = logs["val_loss"] = LOSSES[epoch]


def run(model: resfit.Model, callbacks: list[Callback], **arguments: Any) -> Seen:
    model.set_weights(resfit.Model(PlainNet(rngs=nnx.Rngs(0))).get_weights())
    model.compile("sgd", learning_rate=0.1, ema=0.9, dispatch="jit")
    seen = Seen()
    arguments = {"epochs": len(LOSSES), "validation_data": HELD_OUT, "callbacks": [seen, *callbacks], **arguments}
    fit(model, images(8), labels(8), **arguments)
    return seen


def stopping(monitor: str = "val_loss", patience: int = 9) -> EarlyStopping:
    return EarlyStopping(monitor, patience=patience, restore_best_weights=True)


@pytest.mark.representatives("raw validation", "swap first", "stopped", "a value of training")
@pytest.mark.parametrize(
    ("make", "raw", "ema"),
    [
        pytest.param(lambda: [stopping()], "raw", "ema", id="raw validation"),
        pytest.param(lambda: [SwapEMAWeights(), stopping()], "ema", "ema", id="swap first"),
        pytest.param(lambda: [stopping(), SwapEMAWeights()], "ema", "ema", id="swap last"),
        pytest.param(lambda: [SwapEMAWeights(swap_on_epoch=True), stopping()], "ema", "ema", id="swap on epoch first"),
        pytest.param(lambda: [stopping(), SwapEMAWeights(swap_on_epoch=True)], "ema", "ema", id="swap on epoch last"),
        pytest.param(lambda: [SwapEMAWeights(), stopping(patience=1)], "ema", "ema", id="stopped"),
        pytest.param(lambda: [SwapEMAWeights(), stopping("loss")], "raw", "ema", id="a value of training"),
    ],
)
def test_the_measured_weights_are_restored(model: Any, make: Callable[[], list[Callback]], raw: str, ema: str) -> None:
    seen = run(model, make())
    assert_same(model.get_weights(), getattr(seen, raw)[BEST])
    assert_same(model.get_weights("ema"), getattr(seen, ema)[BEST])
    assert any((a != b).any() for a, b in zip(seen.raw[BEST], seen.ema[BEST], strict=True))
    assert model.validation_weights == "raw"


def test_the_best_value_equals_a_later_evaluate_for_both_kinds_of_weights(model: Any) -> None:
    model.compile("sgd", learning_rate=0.3, ema=0.9, dispatch="jit")
    best = stopping(patience=2)
    fit(model, images(8), labels(8), epochs=5, validation_data=HELD_OUT, callbacks=[SwapEMAWeights(), best])
    for weights in ("raw", "ema"):
        assert model.evaluate(*HELD_OUT, batch_size=8, verbose=0, weights=weights)[0] == best.best


@pytest.mark.parametrize("best_is_last", [True, False])
def test_after_a_stop_the_module_does_not_switch_back_to_the_trained_weights(
    model: Any, best_is_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if SwapEMAWeights had put the restored weights into the module."""
    if best_is_last:
        monkeypatch.setattr("tests.callbacks.test_measured_weights.LOSSES", [4.0, 3.0, 2.0, 1.0])
    seen = run(model, [stopping(), SwapEMAWeights(swap_on_epoch=True)])
    assert_same(model.get_weights(), seen.ema[-1 if best_is_last else BEST])


@pytest.mark.parametrize(
    ("name", "options", "swap", "kind"),
    [
        ("best.safetensors", {"save_best_only": True}, True, "ema"),
        ("best.safetensors", {"save_best_only": True}, False, "raw"),
        ("best.safetensors", {"save_best_only": True, "monitor": "loss"}, True, "raw"),
        ("{epoch}-{val_loss:.0f}.safetensors", {}, True, "ema"),
        ("{epoch}-{loss:.0f}.safetensors", {}, True, "raw"),
        ("{epoch}.safetensors", {}, True, "raw"),
    ],
)
def test_a_file_chosen_or_named_by_a_validation_contains_the_measured_weights(
    model: Any, name: str, options: dict[str, Any], swap: bool, kind: str, tmp_path: Path
) -> None:
    seen = run(model, [*([SwapEMAWeights()] if swap else []), ModelCheckpoint(tmp_path / name, **options)])
    path = tmp_path / name.format(epoch=BEST + 1, loss=LOSSES[BEST], val_loss=LOSSES[BEST])
    loaded = resfit.load(path, module=PlainNet(rngs=nnx.Rngs(9)))
    assert_same(loaded.get_weights(), getattr(seen, kind)[BEST])


@pytest.mark.parametrize("swap", [[], [SwapEMAWeights]])
def test_a_resumed_run_restores_the_same_weights_and_averages(model: Any, swap: list[Any]) -> None:
    whole = stopping()
    run(model, [*(kind() for kind in swap), whole])
    expected = model.get_weights(), model.get_weights("ema")

    class Cut(Callback):
        """Copy the state of the first object into another one before the last epoch."""

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == len(LOSSES) - 1:
                second.load_state_dict(first.state_dict())
                first._weights = None

    first, second = stopping(), stopping()
    run(model, [*(kind() for kind in swap), Cut(), first, second])
    assert_same((model.get_weights(), model.get_weights("ema")), expected)


def test_a_state_of_an_earlier_version_without_averages_restores_its_weights(model: Any) -> None:
    seen = run(model, [])
    old = {"best": 1.0, "wait": 0, "best_epoch": 1, "stopped_epoch": 0, "weights": seen.raw[BEST]}
    callback = stopping()
    callback.set_model(model)
    callback.load_state_dict(old)
    callback.on_train_end({})
    assert_same(model.get_weights(), seen.raw[BEST])
    assert_same(model.get_weights("ema"), seen.raw[BEST])


def test_outside_fit_swap_ema_weights_reports_that_it_swaps_nothing(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run(model, [SwapEMAWeights()])
    assert not caplog.records
    model.evaluate(*HELD_OUT, verbose=0, callbacks=[SwapEMAWeights()])
    model.predict(HELD_OUT[0], verbose=0, callbacks=[SwapEMAWeights()])
    assert [f"{method}(..., weights='ema')" in caplog.text for method in ("evaluate", "predict")] == [True, True]


def test_averages_of_a_second_fit_start_at_the_values_restored_by_the_first(model: Any) -> None:
    seen = run(model, [SwapEMAWeights(), stopping()])
    began: list[Any] = []

    class Begin(Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            began.append((self.model.get_weights(), self.model.get_weights("ema")))

    fit(model, images(8), labels(8), callbacks=[Begin()])
    assert_same(began[0], (seen.ema[BEST], seen.ema[BEST]))
    assert all(np.isfinite(array).all() for array in model.get_weights("ema"))
