"""The confusion matrix, and the metrics that it contains: precision, recall, F1, IoU and accuracy per class."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from resfit import losses
from resfit._utils.checks import is_int
from resfit._utils.keywords import checked
from resfit.errors import CompileError, LabelError
from resfit.metrics.pixels import wide


@flax.struct.dataclass
class _Confusion(clu.metrics.Metric):  # type: ignore[misc]  # clu is untyped
    """Exact counts of (label, prediction) on the device.

    Attributes:
      counts: (classes, classes) int32; rows are labels, columns are predictions. For several labels per example,
        (labels, 2, 2): one matrix of no and yes for each label.
    """

    counts: Any

    num_classes: ClassVar[int]  # network outputs; 1 means a binary logit with two classes
    read: ClassVar[Callable[[np.ndarray], np.ndarray]]  # counts -> values by class
    averaged: ClassVar[bool]
    multi_label: ClassVar[bool]
    counts_rows: ClassVar[bool] = True

    @classmethod
    def empty(cls) -> "_Confusion":
        classes = max(cls.num_classes, 2)
        return cls(jnp.zeros((classes, 2, 2) if cls.multi_label else (classes, classes), jnp.int32))

    @classmethod
    def from_model_output(cls, *, logits: Any, targets: Any, mask: jax.Array | None = None, **_: Any) -> "_Confusion":
        """Return the sums of logits (batch, outputs), labels of `losses.task`, and an optional mask (batch,)."""
        if cls.multi_label:
            return cls._of_each_label(logits, targets, mask)
        kind, logits, labels = losses.task(logits, targets)
        outputs = 1 if kind == "binary" else logits.shape[1]
        check_outputs(cls.__name__, cls.num_classes, outputs)
        if kind == "binary":
            actual, predicted = labels > 0.5, logits > 0
        else:
            actual, predicted = (labels.argmax(axis=1) if kind == "soft" else labels), logits.argmax(axis=1)
        ones = jnp.ones(actual.shape, jnp.int32) if mask is None else mask.astype(jnp.int32)
        return cls(cls.empty().counts.at[actual.astype(jnp.int32), predicted.astype(jnp.int32)].add(ones))

    @classmethod
    def _of_each_label(cls, logits: Any, targets: Any, mask: jax.Array | None) -> "_Confusion":
        logits, labels = losses.same_shape(logits, targets)
        check_outputs(cls.__name__, cls.num_classes, logits.shape[1])
        actual, predicted = (labels > 0.5).astype(jnp.int32), (logits > 0).astype(jnp.int32)
        ones = jnp.ones(len(labels), jnp.int32) if mask is None else mask.astype(jnp.int32)
        label = jnp.arange(cls.num_classes)[None, :]
        return cls(cls.empty().counts.at[label, actual, predicted].add(ones[:, None]))

    def merge(self, other: "_Confusion") -> "_Confusion":
        return type(self)(self.counts + other.counts)

    def compute(self) -> Any:
        """Return the metric; runs on the host."""
        values = type(self).read(np.asarray(self.counts, np.int64))
        if not self.averaged:
            return values
        return float(values[1]) if self.num_classes == 1 else mean_of_defined(values)


def check_outputs(metric: str, expected: int, outputs: int) -> None:
    """Raise if a metric was built for another number of outputs than the network has."""
    if outputs != expected:
        raise LabelError(
            f"The metric {metric} was built with num_classes={expected}, and the network has {outputs} outputs. "
            f"Expected num_classes={outputs}."
        )


def check_num_classes(metric: str, num_classes: int) -> None:
    """Raise if the `num_classes` of a metric is not a positive integer."""
    if not is_int(num_classes, 1):
        raise CompileError(
            f"{metric} got num_classes={num_classes!r}. Expected the number of the network's outputs (1: one binary "
            "logit)."
        )


@checked("function arguments")
def confusion_matrix(num_classes: int, *, multi_label: bool = False) -> type[clu.metrics.Metric]:
    """Return the metric class of the confusion matrix, (classes, classes) int64.

    Rows are labels, columns are predictions. The prediction is the class of the largest logit; ties go to the lower
    number. The class of a soft target is its largest entry.

    Args:
      num_classes: the number of network outputs; 1 for one binary logit, whose matrix is 2 x 2.
      multi_label: True if every output is an independent label. The result is then (labels, 2, 2), a matrix of no and
        yes for each label, as in scikit-learn's multilabel_confusion_matrix.

    Example:
      >>> logits = jnp.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
      >>> confusion_matrix(2).from_model_output(logits=logits, targets=jnp.array([0, 1, 1])).compute()
      array([[1, 0],
             [1, 1]])
    """
    return _reading("confusion_matrix", num_classes, _matrix, multi_label=multi_label)


@checked("function arguments")
def precision(num_classes: int, *, per_class: bool = False, multi_label: bool = False) -> type[clu.metrics.Metric]:
    """Return the metric class of precision: the share of correct predictions among all predictions of a class.

    A class that occurs but is never predicted has precision 0. A class that neither occurs nor is predicted has
    precision NaN and does not count in the mean. Both as in scikit-learn.

    Args:
      num_classes: the number of network outputs; 1 for one binary logit, which gives the value of the positive class.
      per_class: if True, return the values (classes,) instead of their unweighted mean (macro precision).
      multi_label: True if every output is an independent label, predicted if its probability is above 0.5.

    Example:
      >>> logits = jnp.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
      >>> float(precision(2).from_model_output(logits=logits, targets=jnp.array([0, 1, 1])).compute())
      0.75
    """
    name = "precision_per_class" if per_class else "precision"
    return _reading(name, num_classes, _precision, averaged=not per_class, multi_label=multi_label)


@checked("function arguments")
def recall(num_classes: int, *, per_class: bool = False, multi_label: bool = False) -> type[clu.metrics.Metric]:
    """Return the metric class of recall: the share of correct predictions among all examples of a class.

    A class that is predicted but does not occur has recall 0. A class that neither occurs nor is predicted has recall
    NaN and does not count in the mean. Both as in scikit-learn.

    Args:
      num_classes: the number of network outputs; 1 for one binary logit, which gives the value of the positive class.
      per_class: if True, return the values (classes,) instead of their unweighted mean (macro recall).
      multi_label: True if every output is an independent label, predicted if its probability is above 0.5.

    Example:
      >>> logits = jnp.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
      >>> recall(2, per_class=True).from_model_output(logits=logits, targets=jnp.array([0, 1, 1])).compute()
      array([1. , 0.5])
    """
    name = "recall_per_class" if per_class else "recall"
    return _reading(name, num_classes, _recall, averaged=not per_class, multi_label=multi_label)


@checked("function arguments")
def f1(num_classes: int, *, per_class: bool = False, multi_label: bool = False) -> type[clu.metrics.Metric]:
    """Return the metric class of F1, the harmonic mean of precision and recall.

    A class that neither occurs nor is predicted has F1 NaN and does not count in the mean, as in scikit-learn.

    Args:
      num_classes: the number of network outputs; 1 for one binary logit, which gives the value of the positive class.
      per_class: if True, return the values (classes,) instead of their unweighted mean (macro F1).
      multi_label: True if every output is an independent label, predicted if its probability is above 0.5.

    Example:
      >>> logits = jnp.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
      >>> round(float(f1(2).from_model_output(logits=logits, targets=jnp.array([0, 1, 1])).compute()), 4)
      0.6667
    """
    name = "f1_per_class" if per_class else "f1"
    return _reading(name, num_classes, _f1, averaged=not per_class, multi_label=multi_label)


@checked("function arguments")
def mean_iou(num_classes: int, *, per_class: bool = False, multi_label: bool = False) -> type[clu.metrics.Metric]:
    """Return the metric class of the mean intersection over union (IoU), the metric of segmentation.

    The IoU of a class is the number of pixels that have the class as label and prediction, divided by the number of
    those that have it as label or prediction, over the whole dataset. A class that neither occurs nor is predicted has
    IoU NaN and does not count in the mean. Both as in Keras's MeanIoU. Counts are exact up to 2^61 pixels.

    Args:
      num_classes: the number of network outputs; 1 for one binary logit, whose mean is over background and foreground.
      per_class: if True, return the values (classes,) instead of their unweighted mean.
      multi_label: True if every output is an independent label, predicted if its probability is above 0.5.

    Example:
      >>> logits = jnp.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
      >>> mean_iou(2, per_class=True).from_model_output(logits=logits, targets=jnp.array([0, 1, 1])).compute()
      array([0.5, 0.5])
    """
    name = "iou_per_class" if per_class else "mean_iou"
    check_num_classes(name, num_classes)
    both = num_classes == 1 and not per_class
    read = _mean_iou if both else _iou
    return wide(_reading(name, num_classes, read, averaged=not per_class and not both, multi_label=multi_label))


@checked("function arguments")
def accuracy_per_class(num_classes: int, *, multi_label: bool = False) -> type[clu.metrics.Metric]:
    """Return the metric class of the accuracy of each class, (classes,); NaN for a class without examples.

    Args:
      num_classes: the number of network outputs; 1 for one binary logit with two classes.
      multi_label: True if every output is an independent label. The result is then the accuracy of each label.

    Example:
      >>> logits = jnp.array([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
      >>> accuracy_per_class(3).from_model_output(logits=logits, targets=jnp.array([0, 1, 1])).compute()
      array([1. , 0.5, nan])
    """
    return _reading("accuracy_per_class", num_classes, _accuracy, multi_label=multi_label)


def _reading(
    name: str,
    num_classes: int,
    read: Callable[[np.ndarray], np.ndarray],
    *,
    averaged: bool = False,
    multi_label: bool = False,
) -> type[clu.metrics.Metric]:
    check_num_classes(name, num_classes)
    return _metric(name, num_classes, read, averaged, multi_label and num_classes > 1)


@functools.lru_cache(maxsize=None, typed=True)  # typed: 1 and True are equal
def _metric(
    name: str, num_classes: int, read: Callable[[np.ndarray], np.ndarray], averaged: bool, multi_label: bool
) -> type[clu.metrics.Metric]:
    members: dict[str, Any] = {
        "num_classes": num_classes,
        "read": staticmethod(functools.partial(_of_each, read) if multi_label else read),
        "averaged": averaged,
        "multi_label": multi_label,
        "shares": (_Confusion, num_classes, multi_label),  # one matrix serves all readings of a collection
        "__module__": __name__,
    }
    if not multi_label:
        members["for_several_labels"] = staticmethod(
            functools.partial(_reading, name, num_classes, read, averaged=averaged, multi_label=True)
        )
    metric: type[clu.metrics.Metric] = flax.struct.dataclass(type(name, (_Confusion,), members))
    return metric


def _of_each(read: Callable[[np.ndarray], np.ndarray], counts: np.ndarray) -> np.ndarray:
    """Return the values of the labels, one from each matrix of no and yes."""
    if read is _matrix:
        return counts
    if read is _accuracy:
        return _share(counts.trace(axis1=1, axis2=2), counts.sum(axis=(1, 2)))
    return np.array([read(matrix)[1] for matrix in counts])  # the value of yes


def mean_of_defined(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN, or NaN if there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, (classes,) float64; NaN for a whole of zero."""
    shares: np.ndarray = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return shares


def _zero_if_seen(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    seen = counts.sum(axis=0) + counts.sum(axis=1) > 0
    return np.where(np.isnan(values) & seen, 0.0, values)


def _matrix(counts: np.ndarray) -> np.ndarray:
    return counts


def _precision(counts: np.ndarray) -> np.ndarray:
    return _zero_if_seen(_share(counts.diagonal(), counts.sum(axis=0)), counts)


def _recall(counts: np.ndarray) -> np.ndarray:
    return _zero_if_seen(_share(counts.diagonal(), counts.sum(axis=1)), counts)


def _f1(counts: np.ndarray) -> np.ndarray:
    return _share(2 * counts.diagonal(), counts.sum(axis=0) + counts.sum(axis=1))


def _iou(counts: np.ndarray) -> np.ndarray:
    return _share(counts.diagonal(), counts.sum(axis=0) + counts.sum(axis=1) - counts.diagonal())


def _mean_iou(counts: np.ndarray) -> Any:
    return mean_of_defined(_iou(counts))


def _accuracy(counts: np.ndarray) -> np.ndarray:
    return _share(counts.diagonal(), counts.sum(axis=1))
