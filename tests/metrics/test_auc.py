"""The binned area under the ROC curve equals scikit-learn's exact area."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from resfit import metrics
from resfit.errors import CompileError, LabelError
from resfit.metrics.auc import log_odds
from tests.metrics.running import run, scored


def binned(scores: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin of each score, with the rounding of the metric."""
    scores = scores.astype(np.float32)
    share = np.float32(0.5) + np.float32(0.5) * scores / (1 + np.abs(scores))
    return np.clip((share * np.float32(bins)).astype(int), 0, bins - 1)


def area(*arguments: Any, **options: Any) -> float:
    """Return the area of scikit-learn."""
    import sklearn.metrics

    return float(sklearn.metrics.roc_auc_score(*arguments, **options))


@given(scored(1))
def test_the_area_of_binned_scores_equals_that_of_scikit_learn(drawn: Any) -> None:
    logits, labels = drawn
    assume(0 < labels.sum() < len(labels))
    for bins in (7, 1000):
        expected = area(labels, binned(logits[:, 0], bins))
        np.testing.assert_allclose(run(metrics.auc(1, bins=bins), logits, labels), expected, rtol=1e-12)


def test_with_the_default_bins_it_is_close_to_the_exact_area_also_for_confident_predictions() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 4000).astype(np.int32)
    for shift, spread in ((0.3, 0.5), (1.0, 3.0), (8.0, 8.0)):
        logits = (random.normal(size=4000) * spread + shift * (2 * labels - 1)).astype(np.float32)[:, None]
        exact = area(labels, logits[:, 0])
        assert abs(run(metrics.auc(1), logits, labels) - exact) < 5e-4
    # Ten bins are too few, so the bound above can fail.
    assert abs(run(metrics.auc(1, bins=4), logits, labels) - exact) > 5e-4


@pytest.mark.representatives("2")
@pytest.mark.parametrize("classes", [2, 4])
def test_for_several_classes_it_is_the_mean_of_each_class_against_the_others(classes: int) -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, classes, 500).astype(np.int32)
    logits = (random.normal(size=(500, classes)) + 1.5 * np.eye(classes)[labels]).astype(np.float32)
    odds = np.asarray(LOG_ODDS(logits))
    # The oracle gets the same bins, because the order within a bin is lost.
    exact = np.mean([area(labels == k, binned(odds[:, k], 1000)) for k in range(classes)])
    ours = run(metrics.auc(classes), logits, labels)
    np.testing.assert_allclose(ours, exact, atol=2e-5)
    p = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True)
    theirs = area(labels, p if classes > 2 else p[:, 1], multi_class="ovr")
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.1, 1.0, 20.0, 200.0]))
def test_log_odds_equal_those_of_the_softmax_also_where_it_saturates(seed: int, spread: float) -> None:
    import scipy.special

    logits = (spread * np.random.default_rng(seed).normal(size=(16, 4))).astype(np.float32)
    ours = np.asarray(LOG_ODDS(logits))
    for k in range(4):
        rest = scipy.special.logsumexp(np.delete(logits.astype(np.float64), k, axis=1), axis=1)
        np.testing.assert_allclose(ours[:, k], logits[:, k] - rest, rtol=1e-4, atol=1e-3)


LOG_ODDS = jax.jit(log_odds)


@given(scored(1))
def test_the_opposite_sign_gives_the_complementary_area(drawn: Any) -> None:
    logits, labels = drawn
    assume(0 < labels.sum() < len(labels))
    metric = metrics.auc(1)
    both = run(metric, logits, labels) + run(metric, logits, 1 - labels)
    np.testing.assert_allclose(both, 1, rtol=1e-12)


def test_a_class_without_positive_or_negative_examples_is_left_out() -> None:
    logits = np.array([[3.0, 0.0, -1.0], [0.0, 3.0, -1.0], [1.0, 2.0, -1.0]], np.float32)
    assert run(metrics.auc(3), logits, np.array([0, 1, 1], np.int32)) == 1.0
    assert np.isnan(run(metrics.auc(3), logits, np.array([1, 1, 1], np.int32)))


def test_invalid_arguments_raise() -> None:
    with pytest.raises(LabelError, match="auc was built with num_classes=1, and the network has 3"):
        metrics.auc(1).from_model_output(logits=np.zeros((2, 3), np.float32), targets=np.zeros(2, np.int32))
    with pytest.raises(CompileError, match="num_classes=0"):
        metrics.auc(0)
    with pytest.raises(CompileError, match="bins=1"):
        metrics.auc(2, bins=1)
