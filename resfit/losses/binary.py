"""Losses that treat every output as an independent binary label."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from resfit._utils.keywords import checked
from resfit.errors import CompileError, LabelError
from resfit.losses.labels import same_shape, task
from resfit.losses.pixels import RowLoss, is_dense
from resfit.losses.smoothing import Smoothing, check_smoothing, smoothing_now


@checked("loss arguments")
def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the sigmoid cross-entropy of each example, averaged over its outputs, for multi-label classification.

    Args:
      logits: (batch,) or (batch, outputs).
      labels: 0/1, booleans or probabilities in the same shape, or (batch,) for logits (batch, 1).

    Returns:
      (batch,) float32.

    Example:
      >>> binary_cross_entropy(jnp.zeros((1, 3)), jnp.array([[1, 0, 1]]))
      Array([0.6931472], dtype=float32)
    """
    logits, labels = same_shape(logits, labels)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels), axis=1)


@dataclasses.dataclass(frozen=True, repr=False)
class BinaryCrossEntropy(RowLoss):
    """A loss of one class against the rest, as in "ResNet strikes back".

    The loss reads class numbers, multi-label targets and the targets of mixup and CutMix. Class numbers become one-hot
    targets. Every class is a binary label, so an image mixed from two classes can have both.

    Source: Wightman et al., ResNet strikes back (arXiv 2110.00476), section 3.

    Args:
      label_smoothing: the target is (1 - label_smoothing) * label + label_smoothing / classes, with two classes for a
        single logit; 0.1 in recipe A1 of the source, 0 in A2 and A3. Or a function step -> number, as in
        `CrossEntropy`.
      target_threshold: targets above the threshold become 1 and all others 0, before smoothing. None keeps targets.
        With a threshold, an image of mixup or CutMix has both classes.
      multi_label: True if an example can have any number of labels, given as a matrix (examples, labels) of 0 and 1;
        metrics and `predict` then read each output separately. False if an example has exactly one class. None decides
        by the labels, and class numbers mean one class.
      reduction: "mean" or "sum" over the outputs of an example. The source uses the mean, which divides gradients by
        the number of classes: LAMB is not affected, SGD needs another learning rate.
      ignore_index: the label of pixels without a class, as in `CrossEntropy`.

    Raises:
      CompileError: for any other value.
      LabelError: for class numbers with multi_label=True, and for several labels per example with multi_label=False.

    Example:
      >>> loss = BinaryCrossEntropy(target_threshold=0.2)
      >>> loss(jnp.zeros((2, 3)), jnp.array([1, 2]))
      Array([0.6931472, 0.6931472], dtype=float32)
    """

    label_smoothing: Smoothing = 0.0
    target_threshold: float | None = None
    reduction: str = "mean"
    multi_label: bool | None = None
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_smoothing(self.label_smoothing)
        if self.target_threshold is not None and not 0 <= self.target_threshold < 1:
            raise CompileError(
                f"BinaryCrossEntropy got target_threshold={self.target_threshold!r}. Expected a number in [0, 1)."
            )
        if self.reduction not in ("mean", "sum"):
            raise CompileError(f"BinaryCrossEntropy got reduction={self.reduction!r}. Expected 'mean' or 'sum'.")
        if self.multi_label not in (None, True, False):
            raise CompileError(
                f"BinaryCrossEntropy got multi_label={self.multi_label!r}. Expected True, False or None."
            )

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the loss of each example, (batch,) float32; see `over_pixels` for labels of pixels."""
        if self.multi_label is None and is_dense(logits) and labels.shape == logits.shape and logits.shape[-1] > 1:
            raise LabelError(
                f"BinaryCrossEntropy() got targets of pixels, of shape {labels.shape}. Expected multi_label=True if a "
                "pixel can have several labels, or multi_label=False if it has one class."
            )
        return super().__call__(logits, labels)

    def of_rows(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the loss, (batch,) float32, of logits (batch, classes) or one binary logit, and labels of `task`."""
        kind, logits, targets = task(logits, labels)
        if kind == "binary":
            logits, targets = logits[:, None], targets[:, None]
        elif kind == "classes":
            if self.multi_label:
                raise LabelError(
                    f"BinaryCrossEntropy(multi_label=True) got class numbers of shape {labels.shape} for "
                    f"{logits.shape[1]} outputs. Expected a matrix of 0 and 1, (examples, {logits.shape[1]}). If every "
                    "example has one class, omit multi_label."
                )
            known = (targets >= 0) & (targets < logits.shape[1])
            targets = jax.nn.one_hot(targets, logits.shape[1], dtype=jnp.float32)
            # The one-hot row of an unknown class is all zeros, which is a valid target here.
            targets = jnp.where(known[:, None], targets, jnp.nan)
        if self.target_threshold is not None:
            targets = jnp.where(jnp.isnan(targets), targets, (targets > self.target_threshold).astype(jnp.float32))
        smoothing = smoothing_now(self.label_smoothing)
        targets = (1 - smoothing) * targets + smoothing / max(logits.shape[1], 2)
        each = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets)
        return jnp.mean(each, axis=1) if self.reduction == "mean" else jnp.sum(each, axis=1)
