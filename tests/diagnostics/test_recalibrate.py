"""BatchNorm statistics over a data set: what NumPy computes, and nothing else of the model moves."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.diagnostics.recalibrate import Moments, combine
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
    """Two BatchNorms and a Dropout between them, on the pixels themselves: everything can be computed by hand."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.BatchNorm(1, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = resfit.nets.BatchNorm(1, unbiased=True, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = self.dropout(self.first(x, use_running_average=not train), deterministic=not train)
        return self.second(x**3, not train).mean(axis=(1, 2))


def drifting(n: int = 20) -> np.ndarray:
    """Images whose mean moves from batch to batch, so that the batches' own variances miss most of the spread."""
    return images(n) + np.arange(n, dtype=np.float32)[:, None, None, None]


def in_batches(x: np.ndarray, size: int) -> list[np.ndarray]:
    return [x[i : i + size] for i in range(0, len(x), size)]


@pytest.mark.parametrize("batch_size", [4, 8, 20])
def test_the_first_norm_holds_mean_and_variance_of_all_values_whatever_the_batch(batch_size: int) -> None:
    net, x = Normed(rngs=nnx.Rngs(0)), drifting()
    resfit.recalibrate(resfit.Model(net), x, batch_size=batch_size)
    assert_close(net.first.mean[...], x.mean(axis=(0, 1, 2), dtype=np.float64))
    assert_close(net.first.var[...], x.var(axis=(0, 1, 2), dtype=np.float64))
    averaged = np.mean([part.var() for part in in_batches(x, batch_size)])
    assert batch_size == 20 or averaged < 0.5 * np.asarray(net.first.var[...])[0]  # the formula that is often used


def test_a_norm_behind_another_sees_batches_normalised_as_in_training_but_without_dropout() -> None:
    net, x = Normed(rngs=nnx.Rngs(0)), drifting()
    resfit.recalibrate(resfit.Model(net), x, batch_size=8)
    seen = np.concatenate([((b - b.mean()) / np.sqrt(b.var() + 1e-5)) ** 3 for b in in_batches(x, 8)])
    assert_close(net.second.mean[...], seen.mean(axis=(0, 1, 2), dtype=np.float64), 1e-4)
    assert_close(net.second.var[...], seen.var(axis=(0, 1, 2), ddof=1, dtype=np.float64), 1e-4)  # unbiased, once


def test_combined_moments_are_those_of_all_values() -> None:
    parts = [np.random.default_rng(i).normal(1e4 * i, 1 + i, size=(5 + i, 3)) for i in range(4)]
    count, mean, var = combine([Moments(len(p), p.mean(axis=0), p.var(axis=0)) for p in parts])
    every = np.concatenate(parts)
    assert count == len(every)
    np.testing.assert_allclose(mean, every.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(var, every.var(axis=0), rtol=1e-12)


@pytest.mark.parametrize("dispatch", levels.only(["jit", "sharded"], ["jit", "sharded", "eager"]))
def test_only_statistics_change_and_training_goes_on_from_them(dispatch: str) -> None:
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


def test_preprocessing_comes_first_and_batches_of_any_kind_will_do() -> None:
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


def test_evaluation_after_it_is_what_training_mode_gives_on_all_data_at_once() -> None:
    """Three steps from mean 0 and variance 1 leave three quarters of the first values in the running statistics."""
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
        (PlainNet, images(), ModuleError, "PlainNet holds no BatchNorm"),
        (TinyNet, images()[:0], DataError, "no examples"),
        (TinyNet, np.full_like(images(), np.nan), DataError, r"x\[0\] holds NaN"),
        (TinyNet, np.full_like(images(), 1e38), DataError, "'norm' over this data set are not finite"),
    ],
)
def test_what_cannot_be_recalibrated_is_refused_and_left_alone(
    net: type, x: Any, error: type[Exception], words: str
) -> None:
    model = resfit.Model(net(rngs=nnx.Rngs(0)))
    before = values(model.module)
    with pytest.raises(error, match=words):
        resfit.recalibrate(model, x)
    assert differ(before, values(model.module)) == set()
