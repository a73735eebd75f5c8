"""The area under the ROC curve, from histograms."""

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
from resfit.metrics.confusion import check_num_classes, check_outputs, mean_of_defined


@flax.struct.dataclass
class _Auc(clu.metrics.Metric):  # type: ignore[misc]  # clu is untyped
    """Histograms of the scores of each class's examples, and of all others.

    Attributes:
      positives: (classes, bins) int32; one class for a binary logit.
      negatives: (classes, bins) int32.
    """

    positives: Any
    negatives: Any

    num_classes: ClassVar[int]
    bins: ClassVar[int]
    multi_label: ClassVar[bool]

    @classmethod
    def empty(cls) -> "_Auc":
        counts = jnp.zeros((cls.num_classes, cls.bins), jnp.int32)
        return cls(counts, counts)

    @classmethod
    def from_model_output(cls, *, logits: Any, targets: Any, mask: jax.Array | None = None, **_: Any) -> "_Auc":
        """From (batch, outputs) logits, labels as `losses.task` reads them, and an optional boolean mask, (batch,)."""
        scores, actual = cls._scores_and_labels(logits, targets)
        mask = jnp.ones(scores.shape[:1], bool) if mask is None else mask
        # The area depends on the order of the scores alone, so they may be squeezed into (0, 1) in any monotone way.
        # This one leaves bins for the sure predictions of a trained network, where the sigmoid is flat.
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
        """Scores and labels of every class, (batch, classes)."""
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
        """On the host."""
        positives, negatives = np.asarray(self.positives, np.float64), np.asarray(self.negatives, np.float64)
        below = negatives.cumsum(axis=1) - negatives
        # The share of pairs (positive, negative) in the right order; those within a bin count half.
        ordered = (positives * (below + negatives / 2)).sum(axis=1)
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        return mean_of_defined(np.divide(ordered, pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0))


def log_odds(logits: jax.Array) -> jax.Array:
    """log(p / (1 - p)) of each class's softmax probability, (batch, classes), also where p rounds to one."""
    log_p = jax.nn.log_softmax(logits, axis=1)
    top = jax.nn.one_hot(logits.argmax(axis=1), logits.shape[1], dtype=bool)
    against_top = jax.nn.logsumexp(jnp.where(top, -jnp.inf, logits), axis=1, keepdims=True)
    # At most the largest probability exceeds one half.
    return jnp.where(top, logits - against_top, log_p - jnp.log1p(-jnp.exp(jnp.where(top, -1.0, log_p))))


@functools.lru_cache(maxsize=None, typed=True)  # typed: 1 and True are equal
def auc(num_classes: int, *, bins: int = 1000, multi_label: bool = False) -> type[clu.metrics.Metric]:
    """The metric class of the area under the ROC curve: how often an example of a class scores above another one.

    For one binary logit that of the positive class; for several classes the unweighted mean of each against the rest,
    over the classes that have both. The score is the logit of the class's probability, counted in bins, whose width is
    the error's bound: scores in the same bin count as equal.

    Source: Hanley and McNeil (1982), for the area as a share of pairs.

    Args:
      num_classes: outputs of the network; 1 for one binary logit.
      bins: of the histogram.
      multi_label: True if every output is a label of its own: the mean of the labels' areas. A label's score is its
        logit.

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
