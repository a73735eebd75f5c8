"""Metrics for models whose outputs are independent labels, of which an example may have several."""

import functools
from typing import Any

import clu.metrics
import flax.struct

from resfit.errors import CompileError, LabelError
from resfit.metrics.accuracy import Accuracy, BinaryAccuracy, BinaryCrossEntropy, CrossEntropy


def for_several_labels(name: str, metric: Any) -> type[clu.metrics.Metric]:
    """Return the metric that means the same for several labels per example; another metric as it is.

    Args:
      name: of the metric, for messages.
      metric: reads one label per example.

    Raises:
      CompileError: for `clu.metrics.Accuracy`, which has no such form.

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
            "several labels. Use 'accuracy' instead, the share of labels that are right."
        )
    return chosen


def reads_one_label(metric: type[clu.metrics.Metric]) -> bool:
    """Return True if a metric takes the largest output and the largest label of an example for its only ones."""
    return (
        metric in _TWINS
        or hasattr(metric, "for_several_labels")
        or getattr(metric, "one_class", False)
        or issubclass(metric, clu.metrics.Accuracy)
    )


def for_one_label(name: str, metric: type[clu.metrics.Metric]) -> type[clu.metrics.Metric]:
    """Return the metric for a loss that compares the outputs of an example with one another."""
    return refused(metric, f"{name} reads every output on its own") if metric is BinaryAccuracy else metric


@functools.cache
def refused(metric: Any, reason: str) -> type[clu.metrics.Metric]:
    """Return the metric for one binary logit alone: it raises `LabelError` for several outputs."""

    class Refused(metric):  # type: ignore[misc]  # the base is a variable
        @classmethod
        def from_model_output(cls, **model_output: Any) -> Any:
            shape: tuple[int, ...] = getattr(model_output.get("logits"), "shape", ())
            if len(shape) == 2 and shape[1] > 1:
                raise LabelError(
                    f"The metric {reason}, and the loss does not: the network has {shape[1]} outputs. Leave the metric "
                    "out, use 'accuracy', or compute it from model.predict(x)."
                )
            return super().from_model_output(**model_output)

    Refused.__name__ = metric.__name__
    made: type[clu.metrics.Metric] = flax.struct.dataclass(Refused)
    return made


_TWINS: dict[type[clu.metrics.Metric], type[clu.metrics.Metric]] = {
    Accuracy: BinaryAccuracy,
    CrossEntropy: BinaryCrossEntropy,
}
