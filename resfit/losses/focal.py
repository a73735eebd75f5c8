"""The focal loss."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from resfit._utils.checks import is_number
from resfit.errors import CompileError, LabelError
from resfit.losses.labels import task
from resfit.losses.pixels import RowLoss


@dataclasses.dataclass(frozen=True, repr=False)
class Focal(RowLoss):
    """The focal loss: a cross-entropy in which easy examples have little weight, (1 - p)^gamma of their class.

    Source: Lin et al., Focal Loss for Dense Object Detection (arXiv 1708.02002), equations 4 and 5. For several
      classes, p is the softmax probability.

    Args:
      gamma: the exponent. A larger value gives easy examples less weight; 2 in the source, 0 gives cross-entropy.
      alpha: the weight of the positive label of a binary logit; the negative label has weight 1 - alpha. 0.25 in the
        source, None for no weights. For several classes use `fit(class_weight=...)`.
      ignore_index: the label of pixels without a class, as in `CrossEntropy`.

    Raises:
      CompileError: if gamma is negative, or alpha is outside (0, 1).
      LabelError: for alpha with several classes.

    Example:
      >>> logits, labels = jnp.array([[0.0, 0.0], [0.0, 5.0]]), jnp.array([0, 1])
      >>> (Focal()(logits, labels) / Focal(gamma=0.0)(logits, labels)).round(4)  # (1 - p)^2: almost no weight if easy
      Array([0.25, 0.  ], dtype=float32)
    """

    gamma: float = 2.0
    alpha: float | None = None
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.gamma) and math.isfinite(self.gamma) and self.gamma >= 0):
            raise CompileError(f"Focal got gamma={self.gamma!r}. Expected a number of 0 or more.")
        if self.alpha is not None and not (is_number(self.alpha) and 0 < self.alpha < 1):
            raise CompileError(f"Focal got alpha={self.alpha!r}. Expected a weight between 0 and 1, or None.")

    def of_rows(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the loss, (batch,) float32, of logits and labels of `task`."""
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
                f"Focal got alpha={self.alpha} and {logits.shape[1]} classes. Expected one binary logit, whose two "
                "labels alpha weights. For several classes omit alpha and use fit(class_weight=...)."
            )
        log_p = jax.nn.log_softmax(logits, axis=1)
        if kind == "classes":
            log_p = jnp.take_along_axis(log_p, labels[:, None], axis=1)
            labels = jnp.ones_like(log_p)
        # A probability that rounds to one would make the logarithm and the gradient infinite.
        log_not_p = jnp.log(-jnp.expm1(jnp.minimum(log_p, -float(np.finfo(np.float32).eps))))
        return -(labels * self._weighted(log_p, log_not_p)).sum(axis=1)

    def _weighted(self, log_p: jax.Array, log_not_p: jax.Array) -> jax.Array:
        """Return (1 - p)^gamma * log p."""
        return log_p if self.gamma == 0 else jnp.exp(self.gamma * log_not_p) * log_p
