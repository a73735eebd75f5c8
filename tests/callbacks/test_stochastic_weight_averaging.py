"""`StochasticWeightAveraging`: the equal average of the weights after the last epochs."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.callbacks import Callback, StochasticWeightAveraging
from resfit.errors import CallbackError
from tests.faults import runs
from tests.helpers import PlainNet, TinyNet, assert_close, assert_same, compiled, fit, images, labels, state_of


class Weights(Callback):
    """Records weights and learning rate after each epoch."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.rates: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seen.append(self.model.get_weights())
        self.rates.append(self.model.learning_rate)


@pytest.mark.parametrize("start", [0, 2, 3])
def test_the_weights_at_the_end_are_the_mean_of_those_after_the_last_epochs(start: int) -> None:
    model, seen = compiled(), Weights()
    averaging = StochasticWeightAveraging(start, learning_rate=0.025)
    fit(model, epochs=4, callbacks=[seen, averaging])
    expected = [np.mean([np.float64(w) for w in each], axis=0) for each in zip(*seen.seen[start:], strict=True)]
    assert_close(model.get_weights(), expected, 1e-6)
    assert averaging.count == 4 - start
    assert_close(seen.rates, [0.1] * start + [0.025] * (4 - start), 1e-6)


def test_the_running_average_of_the_model_stays() -> None:
    one, other = (compiled(PlainNet(rngs=nnx.Rngs(0)), ema=0.9) for _ in range(2))
    fit(one, epochs=2, callbacks=[StochasticWeightAveraging(0)])
    fit(other, epochs=2)
    assert_same(one.get_weights("ema"), other.get_weights("ema"))


@pytest.mark.parametrize("step", [5, pytest.param(7, marks=pytest.mark.slow), pytest.param(9, marks=pytest.mark.slow)])
def test_a_resumed_run_ends_at_the_same_bits(step: int, tmp_path: Path) -> None:
    def go(folder: str, *stops: Callback) -> Any:
        model, save = runs.small(PlainNet), resfit.callbacks.Checkpoint(tmp_path / folder)
        averaging = StochasticWeightAveraging(1, learning_rate=0.05)
        fit(model, epochs=4, callbacks=[save, averaging, *stops], resume=True)
        assert averaging.count == 3
        return model

    with runs.stopped(SystemExit):
        made = runs.small(PlainNet)
        save, averaging = resfit.callbacks.Checkpoint(tmp_path / "a"), StochasticWeightAveraging(1, learning_rate=0.05)
        fit(made, epochs=4, callbacks=[save, averaging, runs.Stops(step, runs.terminate)], resume=True)
    assert_same(state_of(go("a")).leaves, state_of(go("b")).leaves)


def test_recalibration_after_it_measures_the_averaged_network() -> None:
    model, x = compiled(TinyNet(rngs=nnx.Rngs(0))), images(16)
    fit(model, x, labels(16), epochs=3, callbacks=[StochasticWeightAveraging(1)])
    before = np.array(model.module.norm.mean.get_value())
    resfit.recalibrate(model, x)
    own = np.asarray(model.module.conv(x), np.float64).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(model.module.norm.mean.get_value(), own, atol=1e-5)
    assert np.abs(before - own).max() > 1e-4


class Point(nnx.Module):
    """Ten numbers."""

    def __init__(self) -> None:
        self.w = nnx.Param(jnp.full(10, 3.0))

    def __call__(self, x: Any) -> Any:
        return self.w[...]


class Noisy(resfit.Model):
    """A model of w * w / 2, whose gradients have noise: SGD at a constant rate moves around the minimum at 0."""

    def compute_loss(self, module: Any, x: Any, y: Any, *, key: Any, train: bool) -> tuple[Any, Any]:
        w = module(x)
        noise = jax.random.normal(key, w.shape)
        return jnp.broadcast_to((w * (w / 2 + noise)).sum(), len(x)), None


def test_the_average_is_nearer_to_the_minimum_than_any_of_the_averaged_weights() -> None:
    model, seen = compiled(Point(), kind=Noisy, metrics=[]), Weights()
    fit(model, images(8), labels(8), epochs=200, callbacks=[seen, StochasticWeightAveraging(50)])
    distances = [float(np.linalg.norm(w)) for (w,) in seen.seen[50:]]
    assert np.linalg.norm(model.get_weights()[0]) < min(0.5 * np.mean(distances), min(distances))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start_epoch": -1}, "start_epoch to be a number of epochs, 0 or more, got -1"),
        ({"start_epoch": 1.5}, r"got 1\.5"),
        ({"start_epoch": 0, "learning_rate": 0.0}, r"learning_rate=0\.0\. Expected a positive number"),
        ({"start_epoch": 0, "learning_rate": True}, "learning_rate=True"),
        ({"start_epoch": 0, "learning_rate": "cosine"}, "learning_rate='cosine'"),
    ],
)
def test_a_wrong_argument_raises(arguments: Any, message: str) -> None:
    with pytest.raises(CallbackError, match=message):
        StochasticWeightAveraging(**arguments)


def test_a_run_that_is_too_short_or_has_a_schedule_raises_before_training() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), learning_rate="cosine")
    with pytest.raises(CallbackError, match="start_epoch=2, and fit trains 2 epochs, counted from 0"):
        fit(model, epochs=2, callbacks=[StochasticWeightAveraging(2)])
    with pytest.raises(CallbackError, match="StochasticWeightAveraging sets the learning rate"):
        fit(model, epochs=2, callbacks=[StochasticWeightAveraging(1, learning_rate=0.1)])
