"""What the metrics argument of `Model.compile` means."""

import functools
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import clu.metrics
import jax
import jax.numpy as jnp

from resfit import losses
from resfit._utils import foreign
from resfit._utils.suggest import did_you_mean
from resfit.errors import CompileError, LabelError
from resfit.metrics.accuracy import Accuracy, BinaryAccuracy, CrossEntropy, top_k_accuracy
from resfit.metrics.auc import auc
from resfit.metrics.calibration import calibration_error
from resfit.metrics.confusion import accuracy_per_class, confusion_matrix, f1, precision, recall
from resfit.metrics.mean import Mean
from resfit.metrics.multi_label import for_one_label, for_several_labels
from resfit.metrics.repair import repaired

MetricsArgument = str | Sequence[Any] | Mapping[str, Any] | None


def _of_function(function: Callable[[Any, Any], jax.Array]) -> type[Mean]:
    """Return the metric class of a function. Its sums are a `Mean`: JAX keeps classes of pytrees for ever."""
    ordered = losses.outputs_first(function, "metrics")

    class OfFunction(Mean):
        @classmethod
        def empty(cls) -> Mean:
            return Mean.empty()

        @classmethod
        def from_model_output(  # type: ignore[override]  # it reads a model's outputs
            cls, *, outputs: Any, targets: Any, mask: jax.Array, **_: Any
        ) -> Mean:
            values = ordered(outputs, targets)
            if jnp.shape(values) != mask.shape:
                raise LabelError(
                    f"The metric {getattr(function, '__name__', function)!r} returned shape {jnp.shape(values)}; "
                    f"expected one value per example, {mask.shape}, so that short batches are averaged rightly. "
                    "Leave out the mean."
                )
            return Mean.from_model_output(values, mask=mask)

    return OfFunction


_BY_NAME: dict[str, type[clu.metrics.Metric]] = {
    "accuracy": Accuracy,
    "cross_entropy": CrossEntropy,
    # Keras's names.
    "acc": Accuracy,
    "binary_accuracy": BinaryAccuracy,
    "crossentropy": CrossEntropy,
    "ce": CrossEntropy,
    "calibration_error": calibration_error(),
}

# These have sums for every class.
_BY_CLASS: dict[str, Callable[[int], type[clu.metrics.Metric]]] = {
    "auc": auc,
    "confusion_matrix": confusion_matrix,
    "precision": precision,
    "recall": recall,
    "f1": f1,
    "precision_per_class": functools.partial(precision, per_class=True),
    "recall_per_class": functools.partial(recall, per_class=True),
    "f1_per_class": functools.partial(f1, per_class=True),
    "accuracy_per_class": accuracy_per_class,
}


# What a collection of clu calls its own.
_RESERVED = {name for name in dir(clu.metrics.Collection) if not name.startswith("_")}


def _resolve(
    metric: Any, num_classes: int | None, of_functions: dict[int, type[clu.metrics.Metric]]
) -> type[clu.metrics.Metric]:
    if isinstance(metric, str):
        if metric in _BY_NAME:
            return _BY_NAME[metric]
        if metric in _BY_CLASS:
            if num_classes is None:
                factory = metric.removesuffix("_per_class") if metric != "accuracy_per_class" else metric
                option = ", per_class=True" if factory != metric else ""
                raise CompileError(
                    f"The metric {metric!r} counts by class, and this module does not say how many it has. Expected "
                    f"metrics={{{metric!r}: resfit.metrics.{factory}(num_classes=10{option})}}, with the number of the "
                    "network's outputs."
                )
            return _BY_CLASS[metric](num_classes)
        if match := re.fullmatch(r"top_([1-9]\d*)_accuracy", metric):
            return top_k_accuracy(int(match[1]))
        raise CompileError(
            f"Unknown metric {metric!r}. Expected 'top_5_accuracy' (any number), one of {[*_BY_NAME, *_BY_CLASS]}, a "
            "clu.metrics.Metric class, or a function of (outputs, labels) that returns one value per example."
            + did_you_mean(metric, [*_BY_NAME, *_BY_CLASS, "top_5_accuracy"])
        )
    foreign.refuse(metric, "metrics", CompileError)
    if isinstance(metric, type) and issubclass(metric, clu.metrics.Metric):
        return repaired(metric)
    if callable(metric) and not isinstance(metric, type):
        return of_functions.setdefault(id(metric), _of_function(metric))
    raise CompileError(f"Expected a metric's name, class or function, got {metric!r}.")


def by_name(
    metrics: MetricsArgument, num_classes: int | None = None, *, multi_label: bool | None = None
) -> dict[str, type[clu.metrics.Metric]]:
    """The metrics argument of `Model.compile` as name -> class, in order.

    Args:
      metrics: names, classes and functions.
      num_classes: outputs of the network, for the names that count by class; None if unknown.
      multi_label: whether the loss reads every output as a label of its own (see `losses.multi_label`); None if that is
        unknown.

    Raises:
      CompileError: for unknown names, a name given twice or that cannot be one, and what is no metric.

    Example:
      >>> list(by_name(["accuracy", "top_5_accuracy", "f1"], num_classes=10))
      ['accuracy', 'top_5_accuracy', 'f1']
    """
    if metrics is None:
        return {}
    if isinstance(metrics, str) or callable(metrics):
        metrics = [metrics]
    if isinstance(metrics, Mapping):
        named = dict(metrics)
    else:
        named = {}
        for metric in metrics:
            name = metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
            if name in named:
                raise CompileError(f"Two metrics are named {name!r}. Give metrics as a dict of names.")
            named[name] = metric
    for name in named:
        if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or name in _RESERVED:
            raise CompileError(
                f"A metric cannot be named {name!r}. Expected a Python name without a leading underscore, none of "
                f"{sorted(_RESERVED)}. Give metrics as a dict of names."
            )
    if "loss" in named:
        raise CompileError("A metric cannot be named 'loss': that is the training loss, which is always reported.")
    of_functions: dict[int, type[clu.metrics.Metric]] = {}  # a function that is given twice has its sums once
    resolved = {name: _resolve(metric, num_classes, of_functions) for name, metric in named.items()}
    if num_classes == 1 or multi_label is None:
        return resolved
    suited = for_several_labels if multi_label else for_one_label
    return {name: suited(name, metric) for name, metric in resolved.items()}


def automatic(loss: losses.Loss | None) -> dict[str, type[clu.metrics.Metric]]:
    """What `compile(metrics="auto")` means: accuracy where the loss reads class labels, else nothing."""
    return {"accuracy": Accuracy} if losses.takes_labels(loss) else {}
