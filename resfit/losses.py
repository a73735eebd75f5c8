"""Losses: pure functions of (logits, labels) that return one value per example.

Argument order is optax's, (logits, labels). What the labels mean is read from their rank and dtype, and anything
ambiguous raises: integer class labels, one-hot or soft targets, and binary labels for a single logit.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from resfit.errors import CompileError, LabelError

Loss = Callable[[Any, Any], jax.Array]


class Task(NamedTuple):
    """What labels and logits say about each other: a kind, and the two in that kind's standard form."""

    kind: str  # "classes": (batch,) int32; "soft": (batch, classes) float; "binary": (batch,) float
    logits: jax.Array  # (batch, classes), or (batch,) for "binary"
    labels: jax.Array


def task(logits: Any, labels: Any) -> Task:
    """Decides what labels mean, from shapes and dtypes alone.

    Args:
      logits: (batch, classes); (batch, 1) or (batch,) for one binary logit.
      labels: (batch,) or (batch, 1) integers; (batch, classes) one-hot or soft targets; for a binary logit (batch,) or
        (batch, 1) of 0/1, booleans, or probabilities.

    Raises:
      LabelError: if the two cannot belong together.

    Example:
      >>> import jax.numpy as jnp
      >>> task(jnp.zeros((4, 10)), jnp.array([3, 1, 4, 1])).kind
      'classes'
      >>> task(jnp.zeros((4, 10)), jnp.ones((4, 10)) / 10).kind
      'soft'
      >>> task(jnp.zeros((4, 1)), jnp.array([0, 1, 1, 0])).kind
      'binary'
    """
    for what, value in (("logits", logits), ("labels", labels)):
        if not hasattr(value, "shape"):
            raise LabelError(
                f"The built-in losses take one array of {what}, got {type(value).__name__}. For several outputs or "
                "labels "
                "give compile(loss=...) a function of (outputs, labels), or override Model.compute_loss."
            )
    got = f"logits of shape {logits.shape} and labels of shape {labels.shape}, {labels.dtype}"
    if logits.ndim not in (1, 2) or labels.ndim not in (1, 2) or logits.shape[0] != labels.shape[0]:
        raise LabelError(
            f"Got {got}. Expected logits (batch, classes) and labels (batch,) of class numbers or (batch, classes) of "
            "targets. Does the network end in global pooling and a dense layer?"
        )
    integer = jnp.issubdtype(labels.dtype, jnp.integer)
    column = labels.ndim == 1 or labels.shape[1] == 1
    if logits.ndim == 1 or logits.shape[1] == 1:
        if not column:
            raise LabelError(f"Got {got}. One logit per example is binary: expected one label per example.")
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


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy from logits, for class numbers or soft targets; sigmoid cross-entropy for one binary logit.

    This is the loss that `compile(loss="auto")` uses.

    Args:
      logits: (batch, classes), or (batch, 1) or (batch,) for a binary logit.
      labels: see `task`.

    Returns:
      (batch,) float32.

    Example:
      >>> cross_entropy(jnp.zeros((2, 10)), jnp.array([3, 1]))
      Array([2.3025851, 2.3025851], dtype=float32)
    """
    kind, logits, labels = task(logits, labels)
    logits = logits.astype(jnp.float32)
    by_kind = {
        "classes": optax.softmax_cross_entropy_with_integer_labels,
        "soft": optax.softmax_cross_entropy,
        "binary": optax.sigmoid_binary_cross_entropy,
    }
    return jnp.asarray(by_kind[kind](logits, labels))


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Sigmoid cross-entropy from logits, each output on its own (multi-label), averaged over the outputs.

    Args:
      logits: (batch,) or (batch, outputs).
      labels: the same shape, or (batch,) for (batch, 1); 0/1, booleans or probabilities.

    Returns:
      (batch,) float32.

    Example:
      >>> binary_cross_entropy(jnp.zeros((1, 3)), jnp.array([[1, 0, 1]]))
      Array([0.6931472], dtype=float32)
    """
    logits, labels = _same_shape(logits, labels)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels), axis=1)


def mean_squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Squared error, averaged over the outputs of an example (as Keras and PyTorch do; optax.l2_loss is half of it).

    Args:
      outputs: (batch,) or (batch, outputs).
      targets: the same shape, or (batch,) for (batch, 1).

    Returns:
      (batch,) float32.

    Example:
      >>> mean_squared_error(jnp.array([[1.0], [3.0]]), jnp.array([1.0, 1.0]))
      Array([0., 4.], dtype=float32)
    """
    outputs, targets = _same_shape(outputs, targets)
    return jnp.square(outputs - targets).mean(axis=1)


def _same_shape(outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both as (batch, outputs) float32; never by broadcasting, which would pair every example with every other."""
    a = outputs.reshape(outputs.shape[0], -1).astype(jnp.float32)
    b = targets.reshape(targets.shape[0], -1).astype(jnp.float32)
    if a.shape != b.shape:
        raise LabelError(
            f"Got outputs of shape {outputs.shape} and targets of shape {targets.shape}; expected the same."
        )
    return a, b


def _logits(outputs: Any) -> jax.Array:
    if not hasattr(outputs, "ndim") or outputs.ndim not in (1, 2):
        raise LabelError(
            f"predict(outputs='probabilities' or 'labels') needs logits, (batch, classes), from the module; it returned "
            f"{jax.tree.map(jnp.shape, outputs)}. Use outputs='logits', which returns what the module does."
        )
    logits: jax.Array = outputs
    return logits


def probabilities(outputs: Any) -> jax.Array:
    """Softmax of logits, (batch, classes); sigmoid of a single binary logit, in its shape.

    Example:
      >>> probabilities(jnp.array([[0.0, 0.0]]))
      Array([[0.5, 0.5]], dtype=float32)
    """
    logits = _logits(outputs)
    binary = logits.ndim == 1 or logits.shape[1] == 1
    return jax.nn.sigmoid(logits) if binary else jax.nn.softmax(logits, axis=1)


def class_numbers(outputs: Any) -> jax.Array:
    """The most probable class, (batch,) int32; for a single binary logit 0 or 1.

    Example:
      >>> class_numbers(jnp.array([[0.0, 2.0], [1.0, -1.0]]))
      Array([1, 0], dtype=int32)
    """
    logits = _logits(outputs)
    if logits.ndim == 1 or logits.shape[1] == 1:
        return jnp.asarray(logits.reshape(-1) > 0, jnp.int32)
    return jnp.argmax(logits, axis=1).astype(jnp.int32)


FINISHES: dict[str, Callable[[Any], Any]] = {
    "logits": lambda outputs: outputs,
    "probabilities": probabilities,
    "labels": class_numbers,
}
"""What `Model.predict(outputs=...)` makes of a module's outputs."""

_BY_NAME: dict[str, Loss] = {
    "auto": cross_entropy,
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "mean_squared_error": mean_squared_error,
    # Keras's names. They mean the same here because every resfit network returns logits.
    "sparse_categorical_crossentropy": cross_entropy,
    "categorical_crossentropy": cross_entropy,
    "binary_crossentropy": binary_cross_entropy,
    "mse": mean_squared_error,
}


def get(loss: str | Loss) -> Loss:
    """The loss of a name, or the function itself.

    Raises:
      CompileError: for an unknown name, or something that is no function.
    """
    if isinstance(loss, str):
        if loss not in _BY_NAME:
            raise CompileError(
                f"Unknown loss {loss!r}. Expected a function of (logits, labels), or one of {list(_BY_NAME)}."
            )
        return _BY_NAME[loss]
    if not callable(loss):
        raise CompileError(f"Expected loss to be a name or a function of (logits, labels), got {type(loss).__name__}.")
    return loss


def takes_labels(loss: Loss) -> bool:
    """Whether a loss is ours and reads class labels, so that the labels' values can be checked before training."""
    return loss is cross_entropy


def check_labels(labels: np.ndarray, logits_shape: tuple[int, ...]) -> None:
    """Checks the values of labels on the host, before a device can clamp or ignore them.

    Args:
      labels: all of them, or one batch.
      logits_shape: of one batch.

    Raises:
      LabelError: for a class number outside the network's classes, targets that do not sum to one, or a binary label
        outside [0, 1].
    """
    if labels.size == 0:
        return
    integer = np.issubdtype(labels.dtype, np.integer)
    low, high = labels.min(), labels.max()
    if not np.isfinite([float(low), float(high)]).all():
        raise LabelError(f"The labels hold NaN or infinity (from {low} to {high}). Expected finite values.")
    if len(logits_shape) == 1 or logits_shape[1] == 1:
        if low < 0 or high > 1:
            raise LabelError(
                f"The labels run from {low} to {high}, but the network's one output is binary: expected 0 to 1. "
                "For classes build the network with num_classes; for regression use loss='mean_squared_error'."
            )
    elif integer and (labels.ndim == 1 or labels.shape[1] == 1):
        classes = logits_shape[1]
        if low < 0 or high >= classes:
            if low < 0:
                hint = "Leave out rows without a label, or give them sample_weight 0 and label 0."
            elif low == 1 and high == classes:
                hint = "Labels that start at 1 need y - 1."
            else:
                hint = f"Build the network with num_classes={int(high) + 1}."
            raise LabelError(
                f"The labels run from {low} to {high}; the network has {classes} outputs: expected 0 to "
                f"{classes - 1}. {hint}"
            )
    elif labels.ndim == 2:
        sums = labels.sum(axis=1, dtype=np.float64)
        worst = int(np.abs(sums - 1).argmax())
        if abs(sums[worst] - 1) > 1e-3 or low < 0:
            raise LabelError(
                f"Row {worst} of the targets sums to {sums[worst]:.4g} (smallest {low}); one-hot and soft targets "
                "sum to 1. For several labels per image use loss='binary_cross_entropy'."
            )
