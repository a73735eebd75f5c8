"""What a student learns from a teacher's logits."""

import jax
import jax.numpy as jnp

from resfit.errors import LabelError


def distillation(logits: jax.Array, teacher_logits: jax.Array, temperature: float = 4.0) -> jax.Array:
    """How far the student's softened probabilities are from the teacher's: temperature^2 times the KL divergence.

    The factor keeps gradients of the same size at any temperature. The teacher gets no gradient.

    Source: Hinton, Vinyals and Dean (arXiv 1503.02531).

    Args:
      logits: (batch, classes) of the student.
      teacher_logits: (batch, classes).
      temperature: what both are divided by.

    Returns:
      (batch,) float32, zero where the two agree.

    Raises:
      LabelError: unless both have the same shape, with two classes or more.

    Example:
      >>> distillation(jnp.array([[1.0, 2.0]]), jnp.array([[2.0, 3.0]]))
      Array([0.], dtype=float32)
    """
    if logits.shape != teacher_logits.shape or logits.ndim != 2 or logits.shape[1] < 2:
        raise LabelError(
            f"The student's logits have shape {logits.shape}, the teacher's {teacher_logits.shape}. Expected the same "
            "(batch, classes), of two classes or more."
        )
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32) / temperature, axis=1)
    student = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=1)
    return temperature**2 * (jnp.exp(teacher) * (teacher - student)).sum(axis=1)
