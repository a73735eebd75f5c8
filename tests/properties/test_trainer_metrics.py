"""Losses and metrics equal NumPy for any labels and logits."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from resfit import losses, metrics

values = st.floats(-20, 20, width=32)
# One shape for all, because each shape is compiled.
logits_of_four = hnp.arrays(np.float32, (6, 4), elements=values)
labels_of_four = hnp.arrays(np.int32, (6,), elements=st.integers(0, 3))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@settings(max_examples=50)
@given(logits=logits_of_four, labels=labels_of_four)
def test_cross_entropy_equals_its_formula_also_for_one_hot_targets(logits: np.ndarray, labels: np.ndarray) -> None:
    expected = -log_softmax(logits)[np.arange(6), labels]
    found = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    one_hot = np.eye(4, dtype=np.float32)[labels]
    np.testing.assert_allclose(losses.cross_entropy(jnp.asarray(logits), jnp.asarray(one_hot)), found, atol=1e-5)


@settings(max_examples=50)
@given(logits=hnp.arrays(np.float32, (6, 4), elements=st.integers(0, 3)), labels=labels_of_four)
def test_top_k_accuracy_breaks_ties_for_the_lower_class_as_argmax_does(logits: np.ndarray, labels: np.ndarray) -> None:
    for k in (1, 2, 4):
        order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
        expected = (order == labels[:, None]).any(axis=1).mean()
        metric = metrics.top_k_accuracy(k).from_model_output(logits=jnp.asarray(logits), targets=jnp.asarray(labels))
        np.testing.assert_allclose(metric.compute(), expected, rtol=1e-6)
    accuracy = metrics.Accuracy.from_model_output(logits=jnp.asarray(logits), targets=jnp.asarray(labels))
    np.testing.assert_allclose(accuracy.compute(), (logits.argmax(axis=1) == labels).mean(), rtol=1e-6)


@settings(max_examples=50)
@given(
    data=hnp.arrays(np.float32, (5, 6), elements=values),
    mask=hnp.arrays(bool, (5, 6)).filter(lambda mask: mask.any()),
)
def test_a_mean_over_masked_batches_is_the_mean_of_the_unmasked_values(data: np.ndarray, mask: np.ndarray) -> None:
    mean = metrics.Mean.empty()
    for row, shown in zip(data, mask, strict=True):
        mean = mean.merge(metrics.Mean.from_model_output(jnp.asarray(row), mask=jnp.asarray(shown)))
    np.testing.assert_allclose(mean.compute(), data[mask].astype(np.float64).mean(), rtol=1e-5, atol=1e-5)
    assert int(mean.count) == mask.sum()
