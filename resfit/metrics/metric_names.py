"""The `metrics` argument of `Model.compile`."""

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
from resfit._utils.keywords import checked
from resfit._utils.suggest import did_you_mean
from resfit._utils.words import same_word, use
from resfit.errors import CompileError, LabelError
from resfit.losses import regression
from resfit.metrics.accuracy import Accuracy, BinaryAccuracy, BinaryCrossEntropy, CrossEntropy, top_k_accuracy
from resfit.metrics.auc import auc
from resfit.metrics.calibration import calibration_error
from resfit.metrics.confusion import accuracy_per_class, confusion_matrix, f1, mean_iou, precision, recall
from resfit.metrics.mean import Mean
from resfit.metrics.multi_label import for_one_label, for_several_labels
from resfit.metrics.repair import repaired

MetricsArgument = str | Sequence[Any] | Mapping[str, Any] | None


def _of_function(function: Callable[[Any, Any], jax.Array]) -> type[Mean]:
    """Return the metric class of a function. Its sums are a `Mean`, because JAX keeps every pytree class."""
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
                    f"The metric {getattr(function, '__name__', function)!r} returned shape {jnp.shape(values)}. "
                    f"Expected one value per example, {mask.shape}, which a partial batch needs. Remove the mean."
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
    # The losses of these names, except Keras's metric "cosine_similarity", of which 1 is best.
    **{name: _of_function(loss) for name, loss in regression.ALL.items()},
    "cosine_similarity": _of_function(lambda outputs, labels: -regression.cosine_similarity(outputs, labels)),
    # Keras's names of one class per example.
    **dict.fromkeys(("categorical_accuracy", "sparse_categorical_accuracy"), top_k_accuracy(1)),
    **dict.fromkeys(("top_k_categorical_accuracy", "sparse_top_k_categorical_accuracy"), top_k_accuracy(5)),
    **dict.fromkeys(("categorical_crossentropy", "sparse_categorical_crossentropy"), CrossEntropy),
    **dict.fromkeys(("binary_cross_entropy", "binary_crossentropy"), BinaryCrossEntropy),
}

# Metrics with sums for every class.
_BY_CLASS: dict[str, Callable[[int], type[clu.metrics.Metric]]] = {
    "auc": auc,
    "confusion_matrix": confusion_matrix,
    "precision": precision,
    "recall": recall,
    "f1": f1,
    "f1_score": f1,  # Keras's name
    "precision_per_class": functools.partial(precision, per_class=True),
    "recall_per_class": functools.partial(recall, per_class=True),
    "f1_per_class": functools.partial(f1, per_class=True),
    "accuracy_per_class": accuracy_per_class,
    "mean_iou": mean_iou,
    "iou_per_class": functools.partial(mean_iou, per_class=True),
}


# Names of a collection of clu.
_RESERVED = {name for name in dir(clu.metrics.Collection) if not name.startswith("_")}


def _known(metric: Any) -> Any:
    """Return a name as resfit writes it: "AUC" is "auc"."""
    return same_word(metric, [*_BY_NAME, *_BY_CLASS]) if isinstance(metric, str) else metric


def _resolve(
    metric: Any, num_classes: int | None, of_functions: dict[int, type[clu.metrics.Metric]]
) -> type[clu.metrics.Metric]:
    if isinstance(metric, str):
        if metric in _BY_NAME:
            return _BY_NAME[metric]
        if metric in _BY_CLASS:
            if num_classes is None:
                found = _BY_CLASS[metric]
                of_each, option = (
                    (found.func, ", per_class=True") if isinstance(found, functools.partial) else (found, "")
                )
                raise CompileError(
                    f"The metric {metric!r} counts by class, and the number of classes of this module is unknown. "
                    f"Expected metrics={{{metric!r}: resfit.metrics.{of_each.__name__}(num_classes=10{option})}}, with "
                    "the number of the network's outputs."
                )
            return _BY_CLASS[metric](num_classes)
        if match := re.fullmatch(r"top_([1-9]\d*)_accuracy", metric):
            return top_k_accuracy(int(match[1]))
        expected = (
            f"Expected 'top_5_accuracy' (any number), one of {[*_BY_NAME, *_BY_CLASS]}, a clu.metrics.Metric class, or "
            "a function of (outputs, labels) that returns one value per example."
        )
        similar = did_you_mean(metric, [*_BY_NAME, *_BY_CLASS, "top_5_accuracy"])
        raise CompileError(f"Unknown metric {metric!r}. {use(metric, 'metrics') or expected + similar}")
    foreign.refuse(metric, "metrics", CompileError)
    if isinstance(metric, type) and issubclass(metric, clu.metrics.Metric):
        return repaired(metric)
    if callable(metric) and not isinstance(metric, type):
        return of_functions.setdefault(id(metric), _of_function(metric))
    raise CompileError(f"Expected a metric's name, class or function, got {metric!r}.")


@checked("function arguments")
def by_name(
    metrics: MetricsArgument, num_classes: int | None = None, *, multi_label: bool | None = None
) -> dict[str, type[clu.metrics.Metric]]:
    """Return the metric classes of a `metrics` argument by name, in order.

    Args:
      metrics: names, classes and functions.
      num_classes: the number of network outputs, for metrics that count by class; None if it is unknown.
      multi_label: True if the loss reads every output as an independent label (see `losses.multi_label`); None if that
        is unknown.

    Raises:
      CompileError: for an unknown, repeated or reserved name, or a value that is not a metric.

    Example:
      >>> list(by_name(["accuracy", "top_5_accuracy", "f1"], num_classes=10))
      ['accuracy', 'top_5_accuracy', 'f1']
    """
    if metrics is None:
        return {}
    if isinstance(metrics, str) or callable(metrics):
        metrics = [metrics]
    if isinstance(metrics, Mapping):
        named = {name: _known(metric) for name, metric in metrics.items()}
    else:
        named = {}
        for metric in map(_known, metrics):
            name = metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
            if name in named:
                raise CompileError(
                    f"Two metrics are named {name!r}. Expected different names. Pass metrics as a dict of names."
                )
            named[name] = metric
    for name in named:
        if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or name in _RESERVED:
            raise CompileError(
                f"A metric cannot be named {name!r}. Expected a Python name without a leading underscore, and none of "
                f"{sorted(_RESERVED)}. Pass metrics as a dict of names."
            )
    if "loss" in named:
        raise CompileError(
            "A metric cannot be named 'loss', the name of the training loss, which is always reported. Rename it."
        )
    of_functions: dict[int, type[clu.metrics.Metric]] = {}  # a function under two names has its sums once
    resolved = {name: _resolve(metric, num_classes, of_functions) for name, metric in named.items()}
    if num_classes == 1 or multi_label is None:
        return resolved
    suited = for_several_labels if multi_label else for_one_label
    return {name: suited(name, metric) for name, metric in resolved.items()}


@checked("function arguments")
def automatic(loss: losses.Loss | None) -> dict[str, type[clu.metrics.Metric]]:
    """Return the metrics of `compile(metrics="auto")`: accuracy if the loss reads class labels, else none."""
    return {"accuracy": Accuracy} if losses.takes_labels(loss) else {}
