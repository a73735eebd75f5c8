"""The meaning of labels, read from shapes and dtypes, and checks of their values."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resfit._utils.keywords import checked
from resfit.errors import LabelError

Loss = Callable[[Any, Any], jax.Array]
"""A function (outputs, labels) -> (batch,), one value per example."""


_UNLABELED_PIXELS = (
    "If a number such as 255 marks pixels without a class, use resfit.losses.CrossEntropy(ignore_index=255)."
)


class Task(NamedTuple):
    """The kind of a task, and logits and labels in the standard form of that kind."""

    kind: str  # "classes": (batch,) int32; "soft": (batch, classes) float; "binary": (batch,) float
    logits: jax.Array  # (batch, classes), or (batch,) for "binary"
    labels: jax.Array


@checked("loss arguments")
def task(logits: Any, labels: Any) -> Task:
    """Return the kind of a task; shapes and dtypes decide.

    Args:
      logits: (batch, classes), or (batch, 1) or (batch,) for one binary logit.
      labels: (batch,) or (batch, 1) integers; (batch, classes) one-hot or soft targets; for a binary logit (batch,) or
        (batch, 1) of 0/1, booleans or probabilities.

    Raises:
      LabelError: if logits and labels do not fit together.

    Example:
      >>> import jax.numpy as jnp
      >>> task(jnp.zeros((4, 10)), jnp.array([3, 1, 4, 1])).kind
      'classes'
      >>> task(jnp.zeros((4, 10)), jnp.ones((4, 10)) / 10).kind
      'soft'
      >>> task(jnp.zeros((4, 1)), jnp.array([0, 1, 1, 0])).kind
      'binary'
    """
    _check_one_array(logits=logits, labels=labels)
    got = f"logits of shape {logits.shape} and labels of shape {labels.shape}, {labels.dtype}"
    if logits.ndim not in (1, 2) or labels.ndim not in (1, 2) or logits.shape[0] != labels.shape[0]:
        raise LabelError(
            f"Got {got}. Expected logits (batch, classes) and labels (batch,) of class numbers or (batch, classes) of "
            "targets. A network without global pooling and a dense layer at its end returns other shapes."
        )
    integer = jnp.issubdtype(labels.dtype, jnp.integer)
    column = labels.ndim == 1 or labels.shape[1] == 1
    if logits.ndim == 1 or logits.shape[1] == 1:
        if not column:
            raise LabelError(f"Got {got}. One logit per example is binary. Expected one label per example.")
        return Task("binary", logits.reshape(-1), labels.reshape(-1).astype(jnp.float32))
    if integer and column:
        return Task("classes", logits, labels.reshape(-1).astype(jnp.int32))
    if labels.shape == logits.shape:
        return Task("soft", logits, labels.astype(jnp.float32))
    remedy = (
        "Class numbers must be integers: cast them with y.astype('int32'). For regression use "
        "compile(loss='mean_squared_error') and a single output."
        if column
        else f"Targets must have as many columns as the network has outputs ({logits.shape[1]})."
    )
    raise LabelError(f"Got {got}, which is neither class numbers nor targets. {remedy}")


@checked("loss arguments")
def same_shape(outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return both as (batch, outputs) float32, or raise if the shapes differ: broadcasting would mix examples."""
    _check_one_array(outputs=outputs, targets=targets)
    a = outputs.reshape(outputs.shape[0], -1).astype(jnp.float32)
    b = targets.reshape(targets.shape[0], -1).astype(jnp.float32)
    turned = min(outputs.ndim, targets.ndim) > 2 and _without_ones(outputs.shape) != _without_ones(targets.shape)
    if a.shape != b.shape or turned:
        raise LabelError(
            f"Got outputs of shape {outputs.shape} and targets of shape {targets.shape}. Expected the same shape. Pass "
            "one target per output, build the network with as many outputs, or use loss='cross_entropy' for class "
            "numbers."
        )
    return a, b


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without axes of length one at its end."""
    return shape if shape[-1] != 1 or len(shape) == 1 else _without_ones(shape[:-1])


def described(value: Any) -> str:
    """Return a container or an array in words, for messages.

    Example:
      >>> described({"b": 1, "a": 2}), described((1, 2)), described(np.zeros((4, 3)))
      ("a dict of ['a', 'b']", 'a tuple of 2', 'one array (4, 3)')
    """
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {sorted(value, key=str)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"one array {tuple(value.shape)}" if hasattr(value, "shape") else f"{value!r:.60}"


def _check_one_array(**values: Any) -> None:
    """Raise if the outputs or the labels are not one array, by the word for them."""
    for what, value in values.items():
        if not hasattr(value, "shape"):
            raise LabelError(
                f"Expected one array of {what}, got {described(value)}. For several outputs pass a loss for each, "
                "such as compile(loss={'a': 'auto', 'b': 'mse'}) or a list; or one function of (outputs, labels), or "
                "override Model.compute_loss."
            )


@checked("loss arguments")
def check_labels(labels: np.ndarray, logits_shape: tuple[int, ...]) -> None:
    """Raise if values of labels are invalid. The check runs on the host: a device clamps or ignores such values.

    Args:
      labels: all labels, or those of one batch; for dense logits those of `pixels.representatives`.
      logits_shape: the shape of one batch of logits.

    Raises:
      LabelError: for a class number outside the network's classes, targets that do not sum to one, or a binary label
        outside [0, 1].
    """
    if labels.size == 0:
        return
    low, high = _finite_range(labels)
    dense = len(logits_shape) > 2
    if len(logits_shape) == 1 or logits_shape[-1] == 1:
        if low < 0 or high > 1:
            remedy = "For classes build the network with num_classes; for regression use loss='mean_squared_error'."
            raise LabelError(
                f"The labels run from {low} to {high}, and the network has one binary output. Expected 0 to 1. "
                + (f"For masks of 0 and 255 pass y > 0. {_UNLABELED_PIXELS}" if dense else remedy)
            )
    elif _holds_class_numbers(labels):
        _check_class_numbers(low, high, logits_shape[-1], dense=dense)
    elif labels.ndim == 2:
        sums = labels.sum(axis=1, dtype=np.float64)
        worst = int(np.abs(sums - 1).argmax())
        if abs(sums[worst] - 1) > 1e-3 or low < 0:
            raise LabelError(
                f"Row {worst} of the targets sums to {sums[worst]:.4g} (smallest value {low}). Expected one-hot or "
                "soft targets, which sum to 1. For several labels per image use loss='binary_cross_entropy'."
            )


@checked("loss arguments")
def check_each_output(labels: np.ndarray, logits_shape: tuple[int, ...]) -> None:
    """Raise if values of multi-label targets are invalid. Rows can have any sum.

    Raises:
      LabelError: for a class number outside the network's classes, or any other label outside [0, 1].
    """
    if labels.size == 0:
        return
    low, high = _finite_range(labels)
    if _holds_class_numbers(labels) and len(logits_shape) >= 2 and logits_shape[-1] > 1:
        _check_class_numbers(low, high, logits_shape[-1], dense=len(logits_shape) > 2)
    elif low < 0 or high > 1:
        raise LabelError(
            f"The labels run from {low} to {high}, and each output of the network is binary. Expected 0 to 1. For "
            "class numbers use loss='cross_entropy'; for regression use loss='mean_squared_error'."
        )


@checked("loss arguments")
def multi_hot_row(labels: Any) -> int | None:
    """Return the number of the first row of multi-hot labels that does not have exactly one label, or None.

    Multi-hot labels are one matrix (examples, labels) of 0 and 1. Values that mark a missing label, NaN or -1, are
    allowed, since custom losses use them. Any other labels give None.

    Example:
      >>> multi_hot_row(np.array([[0, 1, 0], [1, 1, 0]])), multi_hot_row(np.eye(3)), multi_hot_row(np.array([2, 0]))
      (1, None, None)
    """
    labels = np.asarray(labels) if hasattr(labels, "shape") else None
    if labels is None or labels.ndim != 2 or labels.shape[1] < 2 or labels.dtype.kind not in "biuf":
        return None
    yes = labels == 1
    if not (yes | (labels == 0) | (labels == -1) | (labels != labels)).all():
        return None
    rows = np.flatnonzero(yes.sum(axis=1) != 1)
    return int(rows[0]) if len(rows) else None


@checked("loss arguments")
def one_hot(labels: Any) -> bool:
    """Return True if labels are one matrix of 0 and 1 with exactly one label in every row.

    Example:
      >>> one_hot(np.eye(3)), one_hot(np.array([[0, 1, 0], [1, 1, 0]])), one_hot(np.array([2, 0]))
      (True, False, False)
    """
    matrix = hasattr(labels, "shape") and len(labels.shape) == 2 and labels.shape[1] > 1
    return matrix and bool(np.isin(labels, (0, 1)).all()) and multi_hot_row(labels) is None


def _finite_range(labels: np.ndarray) -> tuple[Any, Any]:
    low, high = labels.min(), labels.max()
    if not np.isfinite([float(low), float(high)]).all():
        raise LabelError(f"The labels hold NaN or infinity (from {low} to {high}). Expected finite values.")
    return low, high


def _holds_class_numbers(labels: np.ndarray) -> bool:
    return np.issubdtype(labels.dtype, np.integer) and (labels.ndim == 1 or labels.shape[1] == 1)


def _check_class_numbers(low: Any, high: Any, classes: int, *, dense: bool = False) -> None:
    if low >= 0 and high < classes:
        return
    if dense:
        hint = f"{_UNLABELED_PIXELS} For more classes build the network with {int(high) + 1} outputs."
    elif low < 0:
        hint = "Remove rows without a label, or give them sample_weight 0 and label 0."
    elif low == 1 and high == classes:
        hint = "For labels that start at 1 pass y - 1."
    else:
        hint = f"Build the network with num_classes={int(high) + 1}."
    raise LabelError(
        f"The labels run from {low} to {high}, and the network has {classes} outputs. Expected 0 to {classes - 1}. "
        f"{hint}"
    )
