"""The range test finds a learning rate that trains, and restores the model."""

import math
from typing import Any

import numpy as np
import optax
import pytest
from flax import nnx

import resfit
from resfit.diagnostics.lr_finder import LearningRateSearch, suggest
from resfit.errors import CompileError, DataError, NotCompiledError
from tests.helpers import PlainNet, TinyNet, compiled, fit, flags, images, labels, state_of, values


def separable(n: int = 64) -> tuple[np.ndarray, np.ndarray]:
    x, y = images(n), labels(n)
    x[np.arange(n), y] += 2
    return x, y


def everything(model: resfit.Model) -> list[Any]:
    state = state_of(model)
    return [*map(np.array, state.visible()), *map(np.array, state.leaves), np.array(state.epoch)]


@pytest.mark.representatives("True-jit")
@pytest.mark.parametrize("dispatch", ["jit", "sharded"])
@pytest.mark.parametrize("trained", [False, True])
def test_the_model_is_the_same_afterwards_bit_for_bit(dispatch: str, trained: bool) -> None:
    x, y = separable()
    model = compiled(dispatch=dispatch, ema=0.9)
    history = fit(model, x, y) if trained else None
    before, in_module, modes = everything(model), values(model.module), flags(model.module)
    found = resfit.find_learning_rate(model, x, y, steps=12, highest=1.0)
    assert len(set(found.losses)) > 1  # it did train
    for old, new in zip(before, everything(model), strict=True):
        np.testing.assert_array_equal(old, new)
    for name, value in values(model.module).items():
        np.testing.assert_array_equal(in_module[name], value)
    assert flags(model.module) == modes
    assert model.history is history
    assert not model.stop_training
    assert model.learning_rate == pytest.approx(0.1)


def test_training_after_a_search_matches_training_without_it() -> None:
    x, y = separable()
    searched, plain = compiled(), compiled()
    for model in (searched, plain):
        fit(model, x, y)
    resfit.find_learning_rate(searched, x, y, batch_size=8, steps=5)
    assert fit(searched, x, y).history == fit(plain, x, y).history


def test_learning_rates_grow_by_one_factor_and_the_search_stops_when_the_loss_explodes() -> None:
    x, y = np.tile(images(16), (4, 1, 1, 1)), labels(64)  # labels contradict one another: nobody can learn them
    found = resfit.find_learning_rate(compiled(PlainNet(rngs=nnx.Rngs(0))), x, y, highest=1e4, steps=60)
    factors = np.diff(np.log(found.learning_rates))
    np.testing.assert_allclose(factors, math.log(1e10) / 59, rtol=1e-6)
    assert len(found.losses) < 60
    assert not math.isfinite(found.losses[-1]) or found.smoothed[-1] > 4 * min(found.smoothed)
    assert all(loss <= 4 * min(found.smoothed[: i + 1]) for i, loss in enumerate(found.smoothed[:-1]))


@pytest.mark.representatives("PlainNet")
@pytest.mark.parametrize("net", [TinyNet, PlainNet])
def test_the_suggestion_trains_and_far_learning_rates_do_not(net: type) -> None:
    x, y = separable()

    def loss_with(rate: float) -> float:
        model = compiled(net(rngs=nnx.Rngs(0)), learning_rate=rate)
        fit(model, x, y, epochs=3)
        return float(model.evaluate(x, y, verbose=0)[0])

    suggestion = resfit.find_learning_rate(compiled(net(rngs=nnx.Rngs(0))), x, y, batch_size=8).suggestion
    learned = loss_with(suggestion)
    assert learned < 0.9 * loss_with(suggestion / 1e3)
    assert not learned > loss_with(suggestion * 1e3)


def test_an_exploded_step_never_becomes_the_suggestion() -> None:
    assert suggest([0.01, 0.1, 1.0, 10.0], [2.0, 1.0, 3.0, math.nan]) == 0.01
    assert suggest([0.01, 0.1, 1.0, 10.0], [2.0, 1.5, 1.0, -math.inf]) == pytest.approx(0.1)


def test_the_plot_shows_both_curves_and_the_suggestion() -> None:
    rates = [10.0**i for i in range(-4, 1)]
    found = LearningRateSearch(tuple(rates), (3, 2, 1, 2, 99), (3, 2.5, 2, 2, 50), 1e-3)
    (axes,) = found.plot().axes
    shown = {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.get_lines()}
    assert shown["of each batch"][:, 1].tolist() == [3, 2, 1, 2, 99]
    assert shown["smoothed"][:, 0].tolist() == rates
    assert shown["suggestion  0.001"][:, 0].tolist() == [1e-3, 1e-3]
    assert axes.get_ylim()[1] < 10  # not flattened by the explosion


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"lowest": 1.0, "highest": 0.1}, DataError, "lowest=1.0, highest=0.1"),
        ({"lowest": 0.0}, DataError, "0 < lowest"),
        ({"steps": 2}, DataError, "3 steps"),
        ({"x": np.full_like(images(), np.nan)}, DataError, r"x\[0\] holds NaN"),
        ({"x": np.full_like(images(), 3e38)}, DataError, "nan at the lowest learning rate"),
    ],
)
def test_an_impossible_search_raises_and_changes_nothing(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    before = everything(model)
    with pytest.raises(error, match=words):
        resfit.find_learning_rate(model, **{"x": images(), "y": labels(), **arguments})
    for old, new in zip(before, everything(model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_learning_rate_that_cannot_be_set_raises() -> None:
    with pytest.raises(NotCompiledError, match="before find_learning_rate"):
        resfit.find_learning_rate(resfit.Model(PlainNet(rngs=nnx.Rngs(0))), images(), labels())
    with pytest.raises(CompileError, match="schedule"):
        resfit.find_learning_rate(compiled(PlainNet(rngs=nnx.Rngs(0)), learning_rate="cosine"), images(), labels())
    with pytest.raises(CompileError, match="built into this optax object"):
        resfit.find_learning_rate(
            compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=optax.sgd(0.1), learning_rate=None), images(), labels()
        )
