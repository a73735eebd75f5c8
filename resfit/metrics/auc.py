"""The area under the ROC curve, computed from histograms."""

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
from resfit.metrics.confusion import check_num_classes, check_outputs, mean_of_defined


@flax.struct.dataclass
class _Auc(clu.metrics.Metric):  # type: ignore[misc]  # clu is untyped
    """Histograms of the scores of the examples of each class, and of all other examples.

    Attributes:
      positives: (classes, bins) int32; one class for a binary logit.
      negatives: (classes, bins) int32.
    """

    positives: Any
    negatives: Any

    num_classes: ClassVar[int]
    bins: ClassVar[int]
    multi_label: ClassVar[bool]
    counts_rows: ClassVar[bool] = True

    @classmethod
    def empty(cls) -> "_Auc":
        counts = jnp.zeros((cls.num_classes, cls.bins), jnp.int32)
        return cls(counts, counts)

    @classmethod
    def from_model_output(cls, *, logits: Any, targets: Any, mask: jax.Array | None = None, **_: Any) -> "_Auc":
        """Return the sums of logits (batch, outputs), labels of `losses.task`, and an optional mask (batch,)."""
        scores, actual = cls._scores_and_labels(logits, targets)
        mask = jnp.ones(scores.shape[:1], bool) if mask is None else mask
        # The area depends only on the order of the scores, so any monotone map into (0, 1) works. This map keeps bins
        # for the confident predictions of a trained network, where the sigmoid is flat.
        share = 0.5 + 0.5 * scores / (1 + jnp.abs(scores))
        place = jnp.clip((share * cls.bins).astype(jnp.int32), 0, cls.bins - 1)
        row = jnp.arange(cls.num_classes)[None, :]
        empty = cls.empty()
        return cls(
            empty.positives.at[row, place].add((actual & mask[:, None]).astype(jnp.int32)),
            empty.negatives.at[row, place].add((~actual & mask[:, None]).astype(jnp.int32)),
        )

    @classmethod
    def _scores_and_labels(cls, logits: Any, targets: Any) -> tuple[jax.Array, jax.Array]:
        """Return scores and labels of every class, (batch, classes) each."""
        if cls.multi_label:
            logits, labels = losses.same_shape(logits, targets)
            check_outputs(cls.__name__, cls.num_classes, logits.shape[1])
            return logits, labels > 0.5
        kind, logits, labels = losses.task(logits, targets)
        check_outputs(cls.__name__, cls.num_classes, 1 if kind == "binary" else logits.shape[1])
        logits = logits.astype(jnp.float32)
        if kind == "binary":
            return logits[:, None], (labels > 0.5)[:, None]
        labels = labels.argmax(axis=1) if kind == "soft" else labels
        return log_odds(logits), jax.nn.one_hot(labels, cls.num_classes, dtype=bool)

    def merge(self, other: "_Auc") -> "_Auc":
        return type(self)(self.positives + other.positives, self.negatives + other.negatives)

    def compute(self) -> Any:
        """Return the area; runs on the host."""
        positives, negatives = np.asarray(self.positives, np.float64), np.asarray(self.negatives, np.float64)
        below = negatives.cumsum(axis=1) - negatives
        # The share of pairs (positive, negative) in the right order; a pair within one bin counts half.
        ordered = (positives * (below + negatives / 2)).sum(axis=1)
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        return mean_of_defined(np.divide(ordered, pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0))


def log_odds(logits: jax.Array) -> jax.Array:
    """Return log(p / (1 - p)) of each softmax probability, (batch, classes); exact even if p rounds to one."""
    log_p = jax.nn.log_softmax(logits, axis=1)
    top = jax.nn.one_hot(logits.argmax(axis=1), logits.shape[1], dtype=bool)
    against_top = jax.nn.logsumexp(jnp.where(top, -jnp.inf, logits), axis=1, keepdims=True)
    # Only the largest probability can exceed one half.
    return jnp.where(top, logits - against_top, log_p - jnp.log1p(-jnp.exp(jnp.where(top, -1.0, log_p))))


@checked("function arguments")
@functools.lru_cache(maxsize=None, typed=True)  # typed: 1 and True are equal
def auc(num_classes: int, *, bins: int = 1000, multi_label: bool = False) -> type[clu.metrics.Metric]:
    """Return the metric class of the area under the ROC curve (AUC).

    The area is the probability that an example of the class has a higher score than another example. One binary logit
    gives the area of the positive class. Several classes give the unweighted mean of one class against the rest, over
    the classes with both kinds of examples. The score is the log-odds of the class, counted in bins. Scores in one bin
    count as equal, so the bin width bounds the error.

    Source: Hanley and McNeil (1982), for the area as a share of pairs.

    Args:
      num_classes: the number of network outputs; 1 for one binary logit.
      bins: the number of bins of the histogram.
      multi_label: True if every output is an independent label, whose score is its logit. The metric is then the mean
        of the areas of all labels.

    Example:
      >>> logits, labels = jnp.array([[-1.0], [0.5], [0.0], [2.0]]), jnp.array([0, 0, 1, 1])
      >>> auc(1).from_model_output(logits=logits, targets=labels).compute()
      0.75
    """
    check_num_classes("auc", num_classes)
    if not is_int(bins, 2):
        raise CompileError(f"auc got bins={bins!r}. Expected an integer of 2 or more.")
    multi_label = multi_label and num_classes > 1
    members: dict[str, Any] = {
        "num_classes": num_classes,
        "bins": bins,
        "multi_label": multi_label,
        "__module__": __name__,
    }
    if not multi_label:
        members["for_several_labels"] = staticmethod(lambda: auc(num_classes, bins=bins, multi_label=True))
    metric: type[clu.metrics.Metric] = flax.struct.dataclass(type("auc", (_Auc,), members))
    return metric
