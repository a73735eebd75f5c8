"""Expected calibration error equals its definition in NumPy and float64."""

from typing import Any

import jax
import numpy as np
import pytest
import scipy
from hypothesis import assume, given
from hypothesis import strategies as st

from resfit import metrics
from resfit.errors import CompileError
from tests.metrics.running import run, scored


def written_out(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    error = 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def away_from_edges(confidence: np.ndarray, bins: int) -> bool:
    """Return True if no value is so close to a bin edge that float32 and float64 can disagree."""
    edges = confidence[:, None] - np.arange(1, bins)[None, :] / bins
    return bool(np.abs(edges).min(initial=1.0) > 1e-6)


@pytest.mark.parametrize("bins", [4, 15])
@given(drawn=scored(3))
def test_the_error_equals_its_definition(bins: int, drawn: Any) -> None:
    logits, labels = drawn
    confidence = scipy.special.softmax(logits.astype(np.float64), axis=1).max(axis=1)
    assume(away_from_edges(confidence, bins))
    expected = written_out(confidence, logits.argmax(axis=1) == labels, bins)
    np.testing.assert_allclose(run(metrics.calibration_error(bins), logits, labels), expected, rtol=1e-5, atol=5e-6)


@given(drawn=scored(1))
def test_a_binary_logit_has_the_confidence_of_the_likelier_class(drawn: Any) -> None:
    logits, labels = drawn
    confidence = scipy.special.expit(np.abs(logits[:, 0].astype(np.float64)))
    assume(away_from_edges(confidence, 15))
    expected = written_out(confidence, (logits[:, 0] > 0) == labels, 15)
    np.testing.assert_allclose(run(metrics.calibration_error(), logits, labels), expected, rtol=1e-5, atol=5e-6)


def test_the_comparison_detects_another_number_of_bins() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(100, 3)).astype(np.float32)
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1).astype(np.int32)  # drawn from the softmax
    few, many = (run(metrics.calibration_error(bins), logits, labels) for bins in (4, 15))
    assert abs(few - many) > 1e-3


def test_a_calibrated_network_has_no_error_and_an_overconfident_one_has() -> None:
    honest = np.log(np.array([[3.0, 1.0]] * 4, np.float32))  # 75 % confidence, right in three of four cases
    labels = np.array([0, 0, 0, 1], np.int32)
    assert run(metrics.calibration_error(), honest, labels) < 1e-6
    np.testing.assert_allclose(run(metrics.calibration_error(), 30 * honest, labels), 0.25, rtol=1e-5)


def test_the_upper_end_of_a_bin_is_closed() -> None:
    made = jax.jit(metrics.calibration_error(2).from_model_output)
    half = made(logits=np.zeros((1, 2), np.float32), targets=np.int32([0]))
    np.testing.assert_array_equal(half.examples, [1, 0])


def test_it_stays_exact_over_many_batches() -> None:
    metric = metrics.calibration_error(1)
    batch = jax.jit(metric.from_model_output)(logits=np.zeros((1000, 10), np.float32), targets=np.zeros(1000, np.int32))
    merge, sums = jax.jit(lambda one, other: one.merge(other)), batch
    for _ in range(12):  # 4,096,000 examples by doubling, then one batch after the other
        sums = merge(sums, sums)
    for _ in range(50):
        sums = merge(sums, batch)
    sums, batch = jax.device_get((sums, batch))
    confidence = float(batch.confidence[0]) / 1000
    np.testing.assert_allclose(sums.compute(), 1 - confidence, rtol=0, atol=1e-9)


def test_nan_and_no_examples_give_nan() -> None:
    metric = metrics.calibration_error()
    assert np.isnan(metric.empty().compute())
    made = jax.jit(metric.from_model_output)(logits=np.full((2, 3), np.nan, np.float32), targets=np.int32([0, 1]))
    assert np.isnan(jax.device_get(made).compute())


@given(st.one_of(st.integers(max_value=0), st.floats(), st.none()))
def test_an_invalid_number_of_bins_raises(bins: Any) -> None:
    with pytest.raises(CompileError, match="bins="):
        metrics.calibration_error(bins)
