"""The confusion matrix and its derived metrics equal those of scikit-learn."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resfit import metrics
from resfit.errors import CompileError, LabelError
from tests.metrics.running import run, scored

READINGS = {"precision": metrics.precision, "recall": metrics.recall, "f1": metrics.f1}


def theirs(name: str) -> Callable[..., Any]:
    import sklearn.metrics

    return getattr(sklearn.metrics, name)  # type: ignore[no-any-return]


@pytest.mark.parametrize("classes", [2, 3, 5])
@given(data=st.data())
def test_the_matrix_equals_that_of_scikit_learn(classes: int, data: st.DataObject) -> None:
    logits, labels = data.draw(scored(classes))
    expected = theirs("confusion_matrix")(labels, logits.argmax(axis=1), labels=range(classes))
    np.testing.assert_array_equal(run(metrics.confusion_matrix(classes), logits, labels), expected)


@pytest.mark.representatives("4-precision", "2-recall", "4-f1")
@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("classes", [2, 4])
@given(data=st.data())
def test_macro_and_class_values_equal_those_of_scikit_learn(name: str, classes: int, data: st.DataObject) -> None:
    logits, labels = data.draw(scored(classes))
    predicted = logits.argmax(axis=1)
    ours, score = READINGS[name], theirs(f"{name}_score")
    macro = run(ours(classes), logits, labels)
    np.testing.assert_allclose(macro, score(labels, predicted, average="macro", zero_division=0.0), rtol=1e-12)
    by_class = run(ours(classes, per_class=True), logits, labels)
    seen = sorted({*labels.tolist(), *predicted.tolist()})
    expected = np.full(classes, np.nan)
    expected[seen] = score(labels, predicted, average=None, labels=seen, zero_division=0.0)
    np.testing.assert_allclose(by_class, expected, rtol=1e-12)


@pytest.mark.parametrize("name", READINGS)
@given(data=st.data())
def test_a_binary_logit_refers_to_the_positive_class(name: str, data: st.DataObject) -> None:
    logits, labels = data.draw(scored(1))
    predicted = (logits[:, 0] > 0).astype(int)
    value = run(READINGS[name](1), logits, labels)
    if labels.any() or predicted.any():
        np.testing.assert_allclose(value, theirs(f"{name}_score")(labels, predicted, zero_division=0.0), rtol=1e-12)
    else:
        assert np.isnan(value)
    assert run(READINGS[name](1, per_class=True), logits, labels).shape == (2,)


@given(scored(3))
def test_accuracy_by_class_is_recall_where_the_class_occurs_and_averages_to_accuracy(drawn: Any) -> None:
    logits, labels = drawn
    by_class = run(metrics.accuracy_per_class(3), logits, labels)
    occurs = np.bincount(labels, minlength=3)
    np.testing.assert_array_equal(np.isnan(by_class), occurs == 0)
    recall = run(metrics.recall(3, per_class=True), logits, labels)
    np.testing.assert_array_equal(by_class[occurs > 0], recall[occurs > 0])
    accuracy = run(metrics.Accuracy, logits, labels)
    np.testing.assert_allclose(np.nansum(by_class * occurs) / occurs.sum(), accuracy, rtol=1e-6)


@given(scored(3))
def test_soft_targets_count_as_their_largest_class(drawn: Any) -> None:
    logits, labels = drawn
    soft = 0.6 * np.eye(3, dtype=np.float32)[labels] + np.float32(0.4 / 3)
    matrix = metrics.confusion_matrix(3)
    np.testing.assert_array_equal(run(matrix, logits, soft), run(matrix, logits, labels))


def test_counts_stay_exact_where_float_sums_do_not() -> None:
    metric = metrics.confusion_matrix(2)
    sums = metric(jnp.array([[2**24, 0], [0, 0]], jnp.int32))
    one = metric.from_model_output(logits=jnp.array([[1.0, 0.0]]), targets=jnp.array([0]))
    assert int(sums.merge(one).compute()[0, 0]) == 2**24 + 1
    assert np.float32(2**24) + np.float32(1) == 2**24  # the value of a float sum


@pytest.mark.parametrize("per_class", [True, False])
def test_without_examples_the_value_is_nan(per_class: bool) -> None:
    assert np.isnan(jax.device_get(metrics.f1(3, per_class=per_class).empty()).compute()).all()


def test_a_metric_for_another_number_of_classes_raises() -> None:
    with pytest.raises(LabelError, match="precision was built with num_classes=10, and the network has 3 outputs"):
        metrics.precision(10).from_model_output(logits=np.zeros((2, 3), np.float32), targets=np.zeros(2, np.int32))
    with pytest.raises(LabelError, match="built with num_classes=2, and the network has 1 outputs"):
        metrics.confusion_matrix(2).from_model_output(
            logits=np.zeros((2, 1), np.float32), targets=np.zeros(2, np.int32)
        )
    several: Any = metrics.precision(10)
    with pytest.raises(LabelError, match="precision was built with num_classes=10, and the network has 3 outputs"):
        several.for_several_labels().from_model_output(logits=np.zeros((2, 3)), targets=np.zeros((2, 3)))


@pytest.mark.parametrize("number", [0, -1, 2.5, "ten", None])
def test_an_invalid_number_of_classes_raises(number: Any) -> None:
    with pytest.raises(CompileError, match="num_classes="):
        metrics.confusion_matrix(number)


def test_equal_metrics_are_one_class() -> None:
    assert metrics.precision(4) is metrics.precision(4)
    assert metrics.precision(4) is not metrics.precision(4, per_class=True)
