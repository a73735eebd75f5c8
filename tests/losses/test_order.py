"""The parameter names of a loss or a metric decide which argument receives the labels."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resfit import losses, metrics
from resfit.errors import CompileError
from tests.helpers import compiled, images

# (outputs - labels) of outputs 3 and labels 1 is 2 for either order of the parameters.
OUTPUTS, LABELS = np.float32([3.0]), np.float32([1.0])


class KerasStyle:
    """Functions of (y_true, y_pred), in every form of a callable."""

    def __call__(self, y_true: Any, y_pred: Any) -> Any:
        return y_pred - y_true

    def method(self, y_true: Any, y_pred: Any) -> Any:
        return y_pred - y_true


def scaled(scale: float, y_true: Any, y_pred: Any, *, shift: float = 0.0) -> Any:
    return scale * (y_pred - y_true) + shift


LABELS_FIRST: dict[str, Any] = {
    "function": lambda y_true, y_pred: y_pred - y_true,
    "labels and logits": lambda labels, logits: logits - labels,
    "target and input": lambda target, input: input - target,
    "scikit-learn's": lambda labels_true, labels_pred: labels_pred - labels_true,
    "one letter each": lambda y, p: p - y,
    "y_hat": lambda y, y_hat: y_hat - y,
    "camel case": lambda yTrue, yPred: yPred - yTrue,
    "only the first name says it": lambda target, embedding: embedding - target,
    "only the second name says it": lambda a, logits: logits - a,
    "object": KerasStyle(),
    "method": KerasStyle().method,
    "partial": functools.partial(scaled, 1.0, shift=0.0),
    "jit": jax.jit(KerasStyle().method),
    "more parameters": lambda y_true, y_pred, weight=1.0: weight * (y_pred - y_true),
}

OUTPUTS_FIRST: dict[str, Any] = {
    "function": lambda y_pred, y_true: y_pred - y_true,
    "logits and labels": lambda logits, labels: logits - labels,
    "input and target": lambda input, target: input - target,
    "x and y": lambda x, y: x - y,
    "y and t": lambda y, t: y - t,
    "names that say nothing": lambda a, b: a - b,
    "any number": lambda *args: args[0] - args[1],
    "no signature": jnp.subtract,
    "two outputs": lambda logits, teacher_logits: logits - teacher_logits,
}


@pytest.mark.parametrize("function", LABELS_FIRST.values(), ids=LABELS_FIRST)
def test_a_function_that_names_its_labels_first_receives_them_first(function: Any) -> None:
    assert float(losses.get(function)(OUTPUTS, LABELS)[0]) == 2


@pytest.mark.parametrize("function", OUTPUTS_FIRST.values(), ids=OUTPUTS_FIRST)
def test_every_other_function_receives_outputs_first(function: Any) -> None:
    assert losses.get(function) is function
    assert float(function(OUTPUTS, LABELS)[0]) == 2


@pytest.mark.parametrize(
    "function", [lambda y, x: x - y, lambda t, y: y - t, lambda expected, actual: actual - expected]
)
def test_names_that_only_suggest_labels_first_raise(function: Any) -> None:
    for resolve in (losses.get, lambda metric: metrics.by_name({"mine": metric})):
        with pytest.raises(CompileError, match=r"parameter names are ambiguous.*Rename the parameters"):
            resolve(function)


def test_every_loss_of_optax_keeps_its_order() -> None:
    apart = {"smooth_labels"}  # not a loss
    for name, function in vars(optax.losses).items():
        if inspect.isfunction(function) and name not in apart:
            assert losses.outputs_first(function, "loss") is function, name


def test_loss_and_metric_in_keras_order_receive_outputs_and_labels_in_training_and_evaluation() -> None:
    def over(y_true: Any, y_pred: Any) -> Any:
        return (y_pred - y_true).mean(axis=1)

    y = np.ones((8, 3), np.float32)
    model = compiled(loss=over, metrics={"over": over}, learning_rate=0.0)
    expected = float(model.predict(images(8), verbose=0).mean()) - 1
    for result in (
        model.evaluate(images(8), y, verbose=0),
        model.test_on_batch(images(8), y),
    ):
        np.testing.assert_allclose(result, [expected, expected], rtol=1e-5)
