"""What logits say: probabilities and class numbers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from resfit.errors import LabelError


def at_least_float32(outputs: Any) -> Any:
    """Outputs in half precision as float32, so that losses, metrics and NumPy can work with them; others as they are.

    Example:
      >>> at_least_float32({"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.int8)})["a"].dtype
      dtype('float32')
    """

    def convert(output: Any) -> Any:
        half = getattr(output, "dtype", None) in (jnp.bfloat16, jnp.float16)
        return output.astype(jnp.float32) if half else output

    return jax.tree.map(convert, outputs)


def _logits(outputs: Any) -> jax.Array:
    if not hasattr(outputs, "ndim") or outputs.ndim not in (1, 2):
        raise LabelError(
            f"predict(outputs='probabilities' or 'labels') needs logits, (batch, classes), from the module; it "
            f"returned {jax.tree.map(jnp.shape, outputs)}. Use outputs='logits', which returns what the module does."
        )
    logits: jax.Array = at_least_float32(outputs)
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
    "logits": at_least_float32,
    "probabilities": probabilities,
    "labels": class_numbers,
}
"""What `Model.predict(outputs=...)` makes of a module's outputs."""
