"""The distillation loss of a student and a teacher."""

import jax
import jax.numpy as jnp

from resfit._utils.keywords import checked
from resfit.errors import LabelError


@checked("loss arguments")
def distillation(logits: jax.Array, teacher_logits: jax.Array, temperature: float = 4.0) -> jax.Array:
    """Return the divergence of the student's softened probabilities from the teacher's.

    The loss is temperature^2 times the KL divergence. The factor keeps the size of gradients at any temperature. The
    teacher receives no gradient.

    Source: Hinton, Vinyals and Dean (arXiv 1503.02531).

    Args:
      logits: the logits of the student, (batch, classes).
      teacher_logits: the logits of the teacher, (batch, classes).
      temperature: the divisor of all logits.

    Returns:
      (batch,) float32, zero if both have the same probabilities.

    Raises:
      LabelError: if the shapes differ, or for fewer than two classes.

    Example:
      >>> distillation(jnp.array([[1.0, 2.0]]), jnp.array([[2.0, 3.0]]))
      Array([0.], dtype=float32)
    """
    if logits.shape != teacher_logits.shape or logits.ndim != 2 or logits.shape[1] < 2:
        raise LabelError(
            f"The student's logits have shape {logits.shape} and the teacher's {teacher_logits.shape}. Expected the "
            "same shape (batch, classes) with two classes or more."
        )
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32) / temperature, axis=1)
    student = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=1)
    return temperature**2 * (jnp.exp(teacher) * (teacher - student)).sum(axis=1)
