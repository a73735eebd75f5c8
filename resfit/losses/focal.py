"""The focal loss."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from resfit.errors import CompileError, LabelError
from resfit.losses.labels import task


@dataclasses.dataclass(frozen=True)
class Focal:
    """Cross-entropy in which examples that are easy already count little: times (1 - p)^gamma of their class.

    Source: Lin et al., Focal Loss for Dense Object Detection (arXiv 1708.02002), equations 4 and 5; over the softmax
    for several classes.

    Args:
      gamma: how little; 2 in the source, 0 is cross-entropy.
      alpha: the weight of the positive label of a binary logit, 1 - alpha that of the negative; 0.25 in the source,
        None for no weights. For several classes use `fit(class_weight=...)`.

    Raises:
      CompileError: if gamma is negative, or alpha outside (0, 1).
      LabelError: for alpha with several classes.

    Example:
      >>> logits, labels = jnp.array([[0.0, 0.0], [0.0, 5.0]]), jnp.array([0, 1])
      >>> (Focal()(logits, labels) / Focal(gamma=0.0)(logits, labels)).round(4)  # (1 - p)^2: the sure one hardly counts
      Array([0.25, 0.  ], dtype=float32)
    """

    gamma: float = 2.0
    alpha: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gamma) and self.gamma >= 0):
            raise CompileError(f"Got gamma={self.gamma!r}. Expected a number of zero or more.")
        if self.alpha is not None and not 0 < self.alpha < 1:
            raise CompileError(f"Got alpha={self.alpha!r}. Expected a weight between 0 and 1, or None.")

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """(batch,) float32 from logits and labels as `task` reads them."""
        kind, logits, labels = task(logits, labels)
        logits = logits.astype(jnp.float32)
        if kind == "binary":
            yes, no = (1.0, 1.0) if self.alpha is None else (self.alpha, 1 - self.alpha)
            log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
            return -yes * labels * self._weighted(log_p, log_not_p) - no * (1 - labels) * self._weighted(
                log_not_p, log_p
            )
        if self.alpha is not None:
            raise LabelError(
                f"Focal got alpha={self.alpha} and {logits.shape[1]} classes: alpha weighs the two labels of one "
                "binary logit. For several classes leave it out, and give fit(class_weight=...)."
            )
        log_p = jax.nn.log_softmax(logits, axis=1)
        if kind == "classes":
            log_p = jnp.take_along_axis(log_p, labels[:, None], axis=1)
            labels = jnp.ones_like(log_p)
        # A probability that rounds to one would make the logarithm, and the gradient, infinite.
        log_not_p = jnp.log(-jnp.expm1(jnp.minimum(log_p, -float(np.finfo(np.float32).eps))))
        return -(labels * self._weighted(log_p, log_not_p)).sum(axis=1)

    def _weighted(self, log_p: jax.Array, log_not_p: jax.Array) -> jax.Array:
        """(1 - p)^gamma * log p."""
        return log_p if self.gamma == 0 else jnp.exp(self.gamma * log_not_p) * log_p
