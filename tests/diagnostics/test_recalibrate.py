"""BatchNorm statistics over a dataset match NumPy, and nothing else in the model changes."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.errors import DataError, ModuleError
from tests import levels
from tests.helpers import (
    BATCH,
    PlainNet,
    TinyNet,
    assert_close,
    call,
    compiled,
    differ,
    fit,
    flags,
    images,
    labels,
    state_of,
    values,
)


class Normed(nnx.Module):
    """Two BatchNorms with a Dropout between them, on the pixels themselves, so that NumPy can compute everything."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.BatchNorm(1, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = resfit.nets.BatchNorm(1, unbiased=True, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = self.dropout(self.first(x, use_running_average=not train), deterministic=not train)
        return self.second(x**3, not train).mean(axis=(1, 2))


def drifting(n: int = 20) -> np.ndarray:
    """Return images whose mean moves from batch to batch, so that the batch variances miss most of the variance."""
    return images(n) + np.arange(n, dtype=np.float32)[:, None, None, None]


def in_batches(x: np.ndarray, size: int) -> list[np.ndarray]:
    return [x[i : i + size] for i in range(0, len(x), size)]


@pytest.mark.representatives("8")
@pytest.mark.parametrize("batch_size", [4, 8, 20])
def test_the_first_norm_holds_mean_and_variance_of_all_values_for_any_batch_size(batch_size: int) -> None:
    net, x = Normed(rngs=nnx.Rngs(0)), drifting()
    resfit.recalibrate(resfit.Model(net), x, batch_size=batch_size)
    assert_close(net.first.mean[...], x.mean(axis=(0, 1, 2), dtype=np.float64))
    assert_close(net.first.var[...], x.var(axis=(0, 1, 2), dtype=np.float64))
    averaged = np.mean([part.var() for part in in_batches(x, batch_size)])
    assert batch_size == 20 or averaged < 0.5 * np.asarray(net.first.var[...])[0]  # the formula that is often used


def test_the_input_of_a_second_norm_is_normalized_as_in_training_but_without_dropout() -> None:
    net, x = Normed(rngs=nnx.Rngs(0)), drifting()
    resfit.recalibrate(resfit.Model(net), x, batch_size=8)
    seen = np.concatenate([((b - b.mean()) / np.sqrt(b.var() + 1e-5)) ** 3 for b in in_batches(x, 8)])
    assert_close(net.second.mean[...], seen.mean(axis=(0, 1, 2), dtype=np.float64), 1e-4)
    assert_close(net.second.var[...], seen.var(axis=(0, 1, 2), ddof=1, dtype=np.float64), 1e-4)  # unbiased, once


@pytest.mark.parametrize("dispatch", levels.only(["jit", "sharded"], ["jit", "sharded", "eager"]))
def test_only_statistics_change_and_training_continues_from_them(dispatch: str) -> None:
    model = compiled(dispatch=dispatch)
    fit(model)
    before, modes, step = values(model.module), flags(model.module), state_of(model).steps()
    momenta = [np.array(leaf) for leaf in state_of(model).leaves[state_of(model).layout.n_model :]]
    resfit.recalibrate(model, images(), batch_size=BATCH)
    assert differ(before, values(model.module)) == {"norm.mean", "norm.var"}
    assert flags(model.module) == modes
    assert model.module.norm.momentum == 0.9
    for old, new in zip(momenta, state_of(model).leaves[state_of(model).layout.n_model :], strict=True):
        np.testing.assert_array_equal(old, new)
    recalibrated = values(model.module)
    fit(model)
    assert state_of(model).steps() == step + 3
    assert "norm.mean" in differ(recalibrated, values(model.module))


def test_images_are_preprocessed_and_iterables_of_batches_are_accepted() -> None:
    x = np.random.default_rng(0).integers(0, 256, size=(20, 8, 8, 1)).astype(np.uint8)
    net, other = Normed(rngs=nnx.Rngs(0)), Normed(rngs=nnx.Rngs(0))
    resfit.recalibrate(resfit.Model(net), x, batch_size=8)
    assert_close(net.first.mean[...], (x / 255).mean(axis=(0, 1, 2)))
    resfit.recalibrate(resfit.Model(other), [(part, None) for part in in_batches(x, 8)])
    assert differ(values(net), values(other)) == set()


def test_frozen_norms_keep_their_statistics() -> None:
    model = resfit.Model(Normed(rngs=nnx.Rngs(0)))
    model.freeze("first")
    model.compile("sgd")
    before = values(model.module)
    resfit.recalibrate(model, drifting())
    assert differ(before, values(model.module)) == {"second.mean", "second.var"}


def test_evaluation_matches_training_mode_on_all_data_at_once() -> None:
    """Three steps from mean 0 and variance 1 leave three quarters of the initial values in the running statistics."""
    model, x = compiled(TinyNet(rngs=nnx.Rngs(0))), 30 * drifting(24)
    fit(model, x, labels(24))
    at_once = nnx.clone(model.module)
    at_once.train()
    expected = np.asarray(call(at_once, x))
    assert np.abs(model.predict(x, verbose=0) - expected).max() > 0.1
    resfit.recalibrate(model, x, batch_size=8)
    assert_close(model.predict(x, verbose=0), expected, 1e-4)


@pytest.mark.parametrize(
    ("net", "x", "error", "words"),
    [
        (PlainNet, images(), ModuleError, "PlainNet holds no nnx.BatchNorm"),
        (TinyNet, images()[:0], DataError, "no examples"),
        (TinyNet, np.full_like(images(), np.nan), DataError, r"x\[0\] holds NaN"),
        (TinyNet, np.full_like(images(), 1e38), DataError, "'norm' over this dataset are not finite"),
    ],
)
def test_a_model_that_cannot_be_recalibrated_raises_and_does_not_change(
    net: type, x: Any, error: type[Exception], words: str
) -> None:
    model = resfit.Model(net(rngs=nnx.Rngs(0)))
    before = values(model.module)
    with pytest.raises(error, match=words):
        resfit.recalibrate(model, x)
    assert differ(before, values(model.module)) == set()
