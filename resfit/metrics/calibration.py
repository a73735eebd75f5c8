"""Whether the network's probabilities mean what they say."""

import functools
from typing import Any, ClassVar

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from resfit import losses
from resfit._utils.checks import is_int
from resfit.errors import CompileError
from resfit.metrics.mean import two_sum


@flax.struct.dataclass
class _Calibration(clu.metrics.Metric):  # type: ignore[misc]  # clu is untyped
    """Sums by bin of confidence.

    Attributes:
      examples: (bins,) int32.
      correct: (bins,) int32, those whose most probable class is the label's.
      confidence: (bins,) float32, the sum of the largest probabilities.
      error: (bins,) float32, what rounding has taken from it.
    """

    examples: Any
    correct: Any
    confidence: Any
    error: Any

    bins: ClassVar[int]
    one_class: ClassVar[bool] = True  # of several: it has no meaning for several labels

    @classmethod
    def empty(cls) -> "_Calibration":
        counts, sums = jnp.zeros(cls.bins, jnp.int32), jnp.zeros(cls.bins, jnp.float32)
        return cls(counts, counts, sums, sums)

    @classmethod
    def from_model_output(cls, *, logits: Any, targets: Any, mask: jax.Array | None = None, **_: Any) -> "_Calibration":
        """From (batch, outputs) logits, labels as `losses.task` reads them, and an optional boolean mask, (batch,)."""
        kind, logits, labels = losses.task(logits, targets)
        logits = logits.astype(jnp.float32)
        if kind == "binary":
            confidence = jax.nn.sigmoid(jnp.abs(logits))
            right = (logits > 0) == (labels > 0.5)
        else:
            confidence = jax.nn.softmax(logits, axis=1).max(axis=1)
            right = logits.argmax(axis=1) == (labels.argmax(axis=1) if kind == "soft" else labels)
        mask = jnp.ones(confidence.shape, bool) if mask is None else mask
        # Bins are open below and closed above; a confidence is never zero.
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
        """On the host."""
        total = np.asarray(self.examples, np.int64).sum()
        if total == 0:
            return float("nan")
        confidence = np.asarray(self.confidence, np.float64) + np.asarray(self.error, np.float64)
        return float(np.abs(np.asarray(self.correct, np.float64) - confidence).sum() / total)


@functools.lru_cache(maxsize=None, typed=True)  # typed: 1 and True are equal
def calibration_error(bins: int = 15) -> type[clu.metrics.Metric]:
    """The metric class of the expected calibration error: by how much confidence and accuracy differ on average.

    Examples are put into bins of equal width by the probability of their most probable class; the error is the mean,
    over examples, of the difference between a bin's accuracy and its mean confidence.

    Source: Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599), equation 3.

    Args:
      bins: how many; 15 in the source.

    Example:
      >>> logits = jnp.array([[0.0, 30.0], [0.0, 30.0]])  # certain twice, and right once
      >>> calibration_error().from_model_output(logits=logits, targets=jnp.array([0, 1])).compute()
      0.5
    """
    if not is_int(bins, 1):
        raise CompileError(f"calibration_error got bins={bins!r}. Expected a positive integer.")
    metric: type[clu.metrics.Metric] = flax.struct.dataclass(
        type("calibration_error", (_Calibration,), {"bins": bins, "__module__": __name__})
    )
    return metric
