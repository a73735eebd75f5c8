"""Metrics of multi-label models, whose outputs are independent labels."""

import functools
from typing import Any

import clu.metrics
import flax.struct

from resfit._utils.keywords import checked
from resfit.errors import CompileError, LabelError
from resfit.metrics.accuracy import Accuracy, BinaryAccuracy, BinaryCrossEntropy, CrossEntropy


def for_several_labels(name: str, metric: Any) -> type[clu.metrics.Metric]:
    """Return the form of a metric for several labels per example, or the metric itself.

    Args:
      name: the name of the metric, for messages.
      metric: a metric class.

    Raises:
      CompileError: for `clu.metrics.Accuracy`, which has no form for several labels.

    Example:
      >>> for_several_labels("accuracy", Accuracy) is BinaryAccuracy
      True
    """
    chosen: type[clu.metrics.Metric] = _TWINS.get(metric, metric)
    if hasattr(metric, "for_several_labels"):
        chosen = metric.for_several_labels()
    if getattr(metric, "one_class", False):
        return refused(metric, f"{name} reads one class per example")
    if issubclass(metric, clu.metrics.Accuracy):
        raise CompileError(
            f"The metric {name!r} is {metric.__name__} of clu, which reads one class per example, and the loss reads "
            "several labels. Use 'accuracy', which is the share of correct labels."
        )
    return chosen


@checked("function arguments")
def reads_one_label(metric: type[clu.metrics.Metric]) -> bool:
    """Return True if a metric reads only the largest output and the largest label of an example."""
    return (
        metric in _TWINS
        or hasattr(metric, "for_several_labels")
        or getattr(metric, "one_class", False)
        or issubclass(metric, clu.metrics.Accuracy)
    )


def for_one_label(name: str, metric: type[clu.metrics.Metric]) -> type[clu.metrics.Metric]:
    """Return the metric for a loss of one class per example."""
    return refused(metric, f"{name} reads every output on its own") if metric is BinaryAccuracy else metric


@functools.cache
def refused(metric: Any, reason: str) -> type[clu.metrics.Metric]:
    """Return a metric for one binary logit, which raises `LabelError` for several outputs."""

    class Refused(metric):  # type: ignore[misc]  # the base is a variable
        @classmethod
        def from_model_output(cls, **model_output: Any) -> Any:
            shape: tuple[int, ...] = getattr(model_output.get("logits"), "shape", ())
            if len(shape) == 2 and shape[1] > 1:
                raise LabelError(
                    f"The metric {reason}, and the loss of these {shape[1]} outputs does not. Remove the metric, use "
                    "'accuracy', or compute the metric from model.predict(x)."
                )
            return super().from_model_output(**model_output)

    Refused.__name__ = metric.__name__
    made: type[clu.metrics.Metric] = flax.struct.dataclass(Refused)
    return made


_TWINS: dict[type[clu.metrics.Metric], type[clu.metrics.Metric]] = {
    Accuracy: BinaryAccuracy,
    CrossEntropy: BinaryCrossEntropy,
}
