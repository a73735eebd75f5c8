"""The meaning of labels, and ambiguous labels. tests/properties and tests/test_model.py check the values of losses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resfit import losses
from resfit.errors import CompileError, LabelError


@pytest.mark.parametrize(
    ("logits", "labels", "kind"),
    [
        ((4, 10), np.zeros(4, np.int32), "classes"),
        ((4, 10), np.zeros((4, 1), np.uint8), "classes"),
        ((10, 10), np.zeros(10, np.int32), "classes"),
        ((4, 10), np.zeros((4, 10)), "soft"),
        ((4, 10), np.zeros((4, 10), np.int32), "soft"),
        ((4, 2), np.zeros((4, 2), bool), "soft"),
        ((4, 2), np.zeros(4, np.int32), "classes"),
        ((4, 1), np.zeros(4, np.int32), "binary"),
        ((4, 1), np.zeros((4, 1), bool), "binary"),
        ((4,), np.zeros(4), "binary"),
        ((4,), np.zeros((4, 1)), "binary"),
    ],
)
def test_shapes_and_dtypes_select_the_meaning_of_labels(logits: Any, labels: Any, kind: str) -> None:
    task = losses.task(np.zeros(logits, np.float32), labels)
    assert task.kind == kind
    assert task.labels.ndim == {"classes": 1, "soft": 2, "binary": 1}[kind]
    assert task.logits.ndim == {"classes": 2, "soft": 2, "binary": 1}[kind]
    assert jax.eval_shape(losses.cross_entropy, np.zeros(logits, np.float32), labels).shape == logits[:1]


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ((4, 10), np.zeros(5, np.int32), r"logits of shape \(4, 10\) and labels of shape \(5,\)"),
        ((4, 10), np.zeros(4), "must be integers"),
        ((4, 10), np.zeros((4, 1)), "must be integers"),
        ((4, 10), np.zeros(4, bool), "must be integers"),
        ((4, 10), np.zeros((4, 9)), r"as many columns as the network has outputs \(10\)"),
        ((4, 10), np.zeros((4, 9), np.int32), r"as many columns"),
        ((4, 1), np.zeros((4, 3)), "One logit per example is binary"),
        ((4, 2, 2, 10), np.zeros(4, np.int32), "global pooling and a dense layer"),
        ((4, 10), np.zeros((4, 1, 1), np.int32), "class numbers or"),
    ],
)
def test_shapes_that_do_not_match_raise(logits: Any, labels: Any, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        losses.task(np.zeros(logits, np.float32), labels)


def test_several_outputs_or_labels_require_a_custom_loss() -> None:
    for logits, labels in (({"a": np.zeros(3)}, np.zeros(3)), (np.zeros((3, 2)), [np.zeros(3)])):
        with pytest.raises(LabelError, match=r"one array of .*Model\.compute_loss"):
            losses.task(logits, labels)


def test_losses_are_float32_for_every_dtype_of_logits() -> None:
    half = np.ones((4, 3), jnp.bfloat16)
    assert jax.eval_shape(losses.cross_entropy, half, np.zeros(4, np.int32)).dtype == jnp.float32
    assert jax.eval_shape(losses.mean_squared_error, half, half).dtype == jnp.float32


def test_binary_cross_entropy_averages_independent_outputs() -> None:
    logits, labels = np.float32([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]]), np.int32([[1, 0, 1], [0, 0, 1]])
    found, each = (
        jax.jit(loss)(logits, labels) for loss in (losses.binary_cross_entropy, optax.sigmoid_binary_cross_entropy)
    )
    np.testing.assert_allclose(found, np.mean(each, axis=1), rtol=1e-6)


@pytest.mark.parametrize("loss", [losses.binary_cross_entropy, losses.mean_squared_error])
def test_columns_never_broadcast_against_rows(loss: Any) -> None:
    # (n, 1) against (n,) is the usual silent (n, n) of a regression.
    outputs, targets = np.arange(4, dtype=np.float32)[:, None], np.float32([1.0, 0.0, 1.0, 0.0])
    column, row = jax.jit(lambda outputs, targets: (loss(outputs, targets), loss(outputs[:, 0], targets)))(
        outputs, targets
    )
    np.testing.assert_allclose(column, row, rtol=1e-6)
    assert column.shape == (4,)
    with pytest.raises(LabelError, match=r"outputs of shape \(4, 1\) and targets of shape \(4, 2\)"):
        loss(outputs, np.zeros((4, 2), np.float32))


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("auto", losses.cross_entropy),
        ("sparse_categorical_crossentropy", losses.cross_entropy),
        ("categorical_crossentropy", losses.cross_entropy),
        ("binary_crossentropy", losses.binary_cross_entropy),
        ("mse", losses.mean_squared_error),
        ("mean_squared_error", losses.mean_squared_error),
    ],
)
def test_names_and_keras_names_select_losses(name: str, loss: Any) -> None:
    assert losses.get(name) is loss


def test_a_function_is_a_loss_and_other_objects_raise() -> None:
    assert losses.get(optax.l2_loss) is optax.l2_loss
    with pytest.raises(CompileError, match="Unknown loss 'logistic'"):
        losses.get("logistic")
    with pytest.raises(CompileError, match="got int"):
        losses.get(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "logits_shape"),
    [
        (np.array([0, 9]), (2, 10)),
        (np.array([[0], [9]]), (2, 10)),
        (np.eye(3), (3, 3)),
        (np.full((2, 3), 1 / 3, np.float32), (2, 3)),
        (np.eye(3, dtype=bool), (3, 3)),
        (np.array([0.0, 0.3, 1.0]), (3, 1)),
        (np.array([True, False]), (2,)),
        (np.zeros(0, int), (2, 3)),
    ],
)
def test_valid_labels_are_accepted(labels: Any, logits_shape: Any) -> None:
    losses.check_labels(labels, logits_shape)


@pytest.mark.parametrize(
    ("labels", "logits_shape", "message"),
    [
        (np.array([1, 10]), (2, 10), "run from 1 to 10.*10 outputs. Expected 0 to 9.*y - 1"),
        (np.array([0, 10]), (2, 10), "num_classes=11"),
        (np.array([-1, 3]), (2, 10), "run from -1 to 3.*sample_weight 0"),
        (np.array([[0], [10]]), (2, 10), "num_classes=11"),
        (np.array([0, 255], np.uint8), (2, 10), "num_classes=256"),
        (np.array([2**40]), (1, 10), "to 1099511627776"),
        (np.array([[0.5, 0.4]]), (1, 2), "Row 0 of the targets sums to 0.9"),
        (np.array([[1, 0, 0], [1, 1, 0]]), (2, 3), "Row 1 of the targets sums to 2.*binary_cross_entropy"),
        (np.array([[1.5, -0.5]]), (1, 2), "smallest value -0.5"),
        (np.array([[np.nan, 1]]), (1, 2), "NaN or infinity"),
        (np.array([0.0, np.inf]), (2, 1), "NaN or infinity"),
        (np.array([0, 2]), (2, 1), "binary"),
        (np.array([-1, 1]), (2,), "binary"),
    ],
)
def test_invalid_labels_raise_with_a_remedy(labels: Any, logits_shape: Any, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        losses.check_labels(labels, logits_shape)


@pytest.mark.parametrize("logits_shape", [(4,), (4, 1)])
def test_class_numbers_of_one_independent_output_are_zero_and_one(logits_shape: tuple[int, ...]) -> None:
    losses.check_each_output(np.array([0, 1, 1, 0]), logits_shape)
    with pytest.raises(LabelError, match=r"run from 0 to 2.*Expected 0 to 1"):
        losses.check_each_output(np.array([0, 1, 2, 0]), logits_shape)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_one_logit_has_the_probability_of_the_sigmoid_and_the_class_of_its_sign(shape: tuple[int, ...]) -> None:
    logits = np.array([-1, 0.5, 2], np.float32).reshape(shape)
    np.testing.assert_allclose(losses.probabilities(logits), 1 / (1 + np.exp(-logits)), rtol=1e-6)
    assert losses.class_numbers(logits).tolist() == [0, 1, 1]
