"""Softmax cross-entropy, the loss of classification."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from resfit._utils.keywords import checked
from resfit.losses.labels import task
from resfit.losses.pixels import RowLoss, over_pixels
from resfit.losses.smoothing import Smoothing, check_smoothing, smoothing_now


@checked("loss arguments")
def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the softmax cross-entropy of each example, or the sigmoid cross-entropy for one binary logit.

    `compile(loss="auto")` uses this loss.

    Args:
      logits: (batch, classes), or (batch, 1) or (batch,) for a binary logit; or those of each pixel, (batch, height,
        width, classes).
      labels: see `task`; or one for each pixel, (batch, height, width). The loss is then the mean over the pixels.

    Returns:
      (batch,) float32.

    Example:
      >>> cross_entropy(jnp.zeros((2, 10)), jnp.array([3, 1]))
      Array([2.3025851, 2.3025851], dtype=float32)
    """
    return over_pixels(_of_rows, logits, labels)


def _of_rows(logits: jax.Array, labels: jax.Array) -> jax.Array:
    kind, logits, labels = task(logits, labels)
    logits = logits.astype(jnp.float32)
    by_kind = {
        "classes": optax.softmax_cross_entropy_with_integer_labels,
        "soft": optax.softmax_cross_entropy,
        "binary": optax.sigmoid_binary_cross_entropy,
    }
    return jnp.asarray(by_kind[kind](logits, labels))


@dataclasses.dataclass(frozen=True, repr=False)
class CrossEntropy(RowLoss):
    """A cross-entropy loss with label smoothing, and for masks with pixels to ignore.

    The target is (1 - label_smoothing) * label + label_smoothing / classes, as in PyTorch and Keras. A binary logit has
    two classes. Validation uses the same loss; the metric "cross_entropy" uses no label smoothing.

    Source: Szegedy et al. (arXiv 1512.00567), section 7.

    Args:
      label_smoothing: the probability to spread over all classes; 0.1 in the source. 0 gives `cross_entropy`. Or a
        function step -> number, such as `optax.linear_schedule(0.2, 0.0, 1000)`, whose steps count from `compile`;
        evaluation then has no label smoothing.
      ignore_index: the label of pixels without a class, such as 255. The loss of an image is the mean over its other
        pixels, as torch.nn.CrossEntropyLoss gives for this image alone, and 0 if there are none. The metrics of the
        model ignore these pixels too.

    Raises:
      CompileError: if label_smoothing is not in [0, 1).
      LabelError: for an ignore_index with one label for each example.

    Example:
      >>> loss = CrossEntropy(label_smoothing=0.1)
      >>> logits, labels = jnp.array([[4.0, 0.0, 0.0, 0.0]]), jnp.array([0])
      >>> [round(float(loss[0]), 3) for loss in (loss(logits, labels), cross_entropy(logits, labels))]
      [0.353, 0.053]
    """

    label_smoothing: Smoothing = 0.0
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_smoothing(self.label_smoothing)

    def of_rows(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the loss, (batch,) float32, of logits and labels of `task`."""
        hard = _of_rows(logits, labels)
        smoothing = smoothing_now(self.label_smoothing)
        if isinstance(smoothing, int | float) and smoothing == 0:
            return hard
        kind, logits, _ = task(logits, labels)
        logits = logits.astype(jnp.float32)
        # The cross-entropy is linear in the target: add the cross-entropy of the uniform target.
        if kind == "binary":
            uniform = -(jax.nn.log_sigmoid(logits) + jax.nn.log_sigmoid(-logits)) / 2
        else:
            uniform = -jax.nn.log_softmax(logits, axis=1).mean(axis=1)
        return jnp.asarray((1 - smoothing) * hard + smoothing * uniform)
