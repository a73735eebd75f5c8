"""The expected calibration error."""

import functools
from typing import Any, ClassVar

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from resfit import losses
from resfit._utils.checks import is_int
from resfit._utils.keywords import checked
from resfit.errors import CompileError
from resfit.metrics.mean import two_sum


@flax.struct.dataclass
class _Calibration(clu.metrics.Metric):  # type: ignore[misc]  # clu is untyped
    """Sums of each bin of confidence.

    Attributes:
      examples: the number of examples, (bins,) int32.
      correct: the number of correct predictions, (bins,) int32.
      confidence: the sum of the largest probabilities, (bins,) float32.
      error: the rounding error of `confidence`, (bins,) float32.
    """

    examples: Any
    correct: Any
    confidence: Any
    error: Any

    bins: ClassVar[int]
    counts_rows: ClassVar[bool] = True
    one_class: ClassVar[bool] = True  # not defined for several labels per example

    @classmethod
    def empty(cls) -> "_Calibration":
        counts, sums = jnp.zeros(cls.bins, jnp.int32), jnp.zeros(cls.bins, jnp.float32)
        return cls(counts, counts, sums, sums)

    @classmethod
    def from_model_output(cls, *, logits: Any, targets: Any, mask: jax.Array | None = None, **_: Any) -> "_Calibration":
        """Return the sums of logits (batch, outputs), labels of `losses.task`, and an optional mask (batch,)."""
        kind, logits, labels = losses.task(logits, targets)
        logits = logits.astype(jnp.float32)
        if kind == "binary":
            confidence = jax.nn.sigmoid(jnp.abs(logits))
            right = (logits > 0) == (labels > 0.5)
        else:
            confidence = jax.nn.softmax(logits, axis=1).max(axis=1)
            right = logits.argmax(axis=1) == (labels.argmax(axis=1) if kind == "soft" else labels)
        mask = jnp.ones(confidence.shape, bool) if mask is None else mask
        # A bin excludes its lower bound and includes its upper one; a confidence is never zero.
        place = jnp.clip(jnp.ceil(confidence * cls.bins).astype(jnp.int32) - 1, 0, cls.bins - 1)
        empty = cls.empty()
        return cls(
            empty.examples.at[place].add(mask.astype(jnp.int32)),
            empty.correct.at[place].add((mask & right).astype(jnp.int32)),
            empty.confidence.at[place].add(jnp.where(mask, confidence, 0)),
            empty.error,
        )

    def merge(self, other: "_Calibration") -> "_Calibration":
        confidence, lost = two_sum(self.confidence, other.confidence)
        return type(self)(
            self.examples + other.examples, self.correct + other.correct, confidence, self.error + other.error + lost
        )

    def compute(self) -> Any:
        """Return the error; runs on the host."""
        total = np.asarray(self.examples, np.int64).sum()
        if total == 0:
            return float("nan")
        confidence = np.asarray(self.confidence, np.float64) + np.asarray(self.error, np.float64)
        return float(np.abs(np.asarray(self.correct, np.float64) - confidence).sum() / total)


@checked("function arguments")
@functools.lru_cache(maxsize=None, typed=True)  # typed: 1 and True are equal
def calibration_error(bins: int = 15) -> type[clu.metrics.Metric]:
    """Return the metric class of the expected calibration error: the mean difference of confidence and accuracy.

    The probability of the predicted class puts each example into a bin; bins have equal width. The error is the mean
    over examples of the difference between the accuracy of the bin and its mean confidence.

    Source: Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599), equation 3.

    Args:
      bins: the number of bins; 15 in the source.

    Example:
      >>> logits = jnp.array([[0.0, 30.0], [0.0, 30.0]])  # certain twice, correct once
      >>> calibration_error().from_model_output(logits=logits, targets=jnp.array([0, 1])).compute()
      0.5
    """
    if not is_int(bins, 1):
        raise CompileError(f"calibration_error got bins={bins!r}. Expected a positive integer.")
    metric: type[clu.metrics.Metric] = flax.struct.dataclass(
        type("calibration_error", (_Calibration,), {"bins": bins, "__module__": __name__})
    )
    return metric
