"""Losses that treat every output as a yes-or-no question of its own."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from resfit.errors import CompileError, LabelError
from resfit.losses.cross_entropy import check_smoothing
from resfit.losses.labels import same_shape, task


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
    logits, labels = same_shape(logits, labels)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels), axis=1)


@dataclasses.dataclass(frozen=True)
class BinaryCrossEntropy:
    """Each class against the rest: the loss of "ResNet strikes back", also for class numbers and mixed labels.

    Class numbers become one-hot targets. Every class is then a binary question, so that a picture mixed from two may
    fully be both.

    Source: Wightman et al., ResNet strikes back (arXiv 2110.00476), section 3.

    Args:
      label_smoothing: the target is (1 - label_smoothing) * label + label_smoothing / classes, two for a single logit;
        0.1 in the source's recipe A1, 0 in A2 and A3.
      target_threshold: targets above it become 1, the others 0, before they are smoothed; None leaves them. With it,
        what mixup and CutMix made counts as both of its classes.
      multi_label: True if an example may have several labels, or none, given as a matrix (examples, labels) of 0 and 1:
        metrics and `predict` then read every output on its own. False if an example has exactly one class. None: the
        labels that the model sees tell, and class numbers mean one class.
      reduction: "mean" or "sum" over the outputs of an example. The source takes the mean, which makes gradients
        smaller by the number of classes; LAMB does not mind, SGD wants another learning rate.

    Raises:
      CompileError: for other values.
      LabelError: for class numbers with multi_label=True; for several labels per example with multi_label=False.

    Example:
      >>> loss = BinaryCrossEntropy(target_threshold=0.2)
      >>> loss(jnp.zeros((2, 3)), jnp.array([1, 2]))
      Array([0.6931472, 0.6931472], dtype=float32)
    """

    label_smoothing: float = 0.0
    target_threshold: float | None = None
    reduction: str = "mean"
    multi_label: bool | None = None

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        if self.target_threshold is not None and not 0 <= self.target_threshold < 1:
            raise CompileError(f"Got target_threshold={self.target_threshold!r}. Expected a number from 0 up to 1.")
        if self.reduction not in ("mean", "sum"):
            raise CompileError(
                f"Got reduction={self.reduction!r}. Expected 'mean' or 'sum', over an example's outputs."
            )
        if self.multi_label not in (None, True, False):
            raise CompileError(f"Got multi_label={self.multi_label!r}. Expected True, False or None.")

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """(batch,) float32 from logits (batch, classes) and class numbers or targets in [0, 1], or one binary logit."""
        kind, logits, targets = task(logits, labels)
        if kind == "binary":
            logits, targets = logits[:, None], targets[:, None]
        elif kind == "classes":
            if self.multi_label:
                raise LabelError(
                    f"BinaryCrossEntropy(multi_label=True) got class numbers of shape {labels.shape} for "
                    f"{logits.shape[1]} outputs. Expected a matrix of 0 and 1, (examples, {logits.shape[1]}). If every "
                    "example has one class, leave multi_label out."
                )
            known = (targets >= 0) & (targets < logits.shape[1])
            targets = jax.nn.one_hot(targets, logits.shape[1], dtype=jnp.float32)
            # No class at all would be a legal target, so an unknown one must not become it.
            targets = jnp.where(known[:, None], targets, jnp.nan)
        if self.target_threshold is not None:
            targets = jnp.where(jnp.isnan(targets), targets, (targets > self.target_threshold).astype(jnp.float32))
        targets = (1 - self.label_smoothing) * targets + self.label_smoothing / max(logits.shape[1], 2)
        each = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets)
        return jnp.mean(each, axis=1) if self.reduction == "mean" else jnp.sum(each, axis=1)
