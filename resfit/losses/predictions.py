"""Probabilities and labels from logits, for single-label and multi-label models."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from resfit._utils.keywords import checked
from resfit.errors import LabelError


@checked("loss arguments")
def at_least_float32(outputs: Any) -> Any:
    """Return outputs of half precision as float32, for losses, metrics and NumPy; keep all other outputs.

    Example:
      >>> at_least_float32({"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.int8)})["a"].dtype
      dtype('float32')
    """

    def convert(output: Any) -> Any:
        half = getattr(output, "dtype", None) in (jnp.bfloat16, jnp.float16)
        return output.astype(jnp.float32) if half else output

    return jax.tree.map(convert, outputs)


def _logits(outputs: Any) -> jax.Array:
    if getattr(outputs, "ndim", 0) < 1:
        raise LabelError(
            f"The module returned outputs of shape {jax.tree.map(jnp.shape, outputs)}. Expected logits (batch, "
            "classes) for predict(outputs='probabilities' or 'labels'). Use outputs='logits', which takes any outputs."
        )
    logits: jax.Array = at_least_float32(outputs)
    return logits


def _is_binary(logits: jax.Array) -> bool:
    return logits.ndim == 1 or logits.shape[-1] == 1


@checked("loss arguments")
def probabilities(outputs: Any) -> jax.Array:
    """Return the softmax of logits over the last axis, or the sigmoid of a single binary logit, in the same shape.

    Example:
      >>> probabilities(jnp.array([[0.0, 0.0]]))
      Array([[0.5, 0.5]], dtype=float32)
    """
    logits = _logits(outputs)
    return jax.nn.sigmoid(logits) if _is_binary(logits) else jax.nn.softmax(logits, axis=-1)


@checked("loss arguments")
def class_numbers(outputs: Any) -> jax.Array:
    """Return the most probable class of the last axis, (batch, ...) int32; 0 or 1 for a single binary logit.

    Example:
      >>> class_numbers(jnp.array([[0.0, 2.0], [1.0, -1.0]]))
      Array([1, 0], dtype=int32)
    """
    logits = _logits(outputs)
    if _is_binary(logits):
        return jnp.asarray(logits.reshape(logits.shape[: max(1, logits.ndim - 1)]) > 0, jnp.int32)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


@checked("loss arguments")
def each_probability(outputs: Any) -> jax.Array:
    """Return the sigmoid of every logit in the same shape: the probabilities of a multi-label model.

    Example:
      >>> each_probability(jnp.array([[0.0, 0.0]]))
      Array([[0.5, 0.5]], dtype=float32)
    """
    return jax.nn.sigmoid(_logits(outputs))


@checked("loss arguments")
def each_label(outputs: Any) -> jax.Array:
    """Return 1 for every logit whose probability is above 0.5, else 0: (batch, ..., labels) int32.

    A single logit gives (batch, ...), as `class_numbers` does.

    Example:
      >>> each_label(jnp.array([[2.0, -1.0, 0.5]]))
      Array([[1, 0, 1]], dtype=int32)
    """
    logits = _logits(outputs)
    return class_numbers(logits) if _is_binary(logits) else jnp.asarray(logits > 0, jnp.int32)


FINISHES: dict[str, Callable[[Any], Any]] = {
    "logits": at_least_float32,
    "probabilities": probabilities,
    "labels": class_numbers,
}
"""Functions of a module's outputs by the values of `Model.predict(outputs=...)`."""

MULTI_LABEL_FINISHES: dict[str, Callable[[Any], Any]] = FINISHES | {
    "probabilities": each_probability,
    "labels": each_label,
}
"""The same functions for a multi-label model, whose outputs are independent binary labels."""
