"""Metrics on clu.metrics: sums kept on the device, merged inside the step, computed when somebody reads them.

Every metric here counts examples, not batches, so a short last batch weighs what it should. `metrics=` of
`Model.compile` also takes any `clu.metrics.Metric` class and any function of (outputs, labels).
"""

import functools
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp

from resfit import losses
from resfit.errors import CompileError, LabelError

MetricsArgument = str | Sequence[Any] | Mapping[str, Any] | None


@flax.struct.dataclass
class Mean(clu.metrics.Metric):  # type: ignore[misc]  # clu is untyped
    """Mean over examples, exact over any number of batches.

    clu's Average sums in float32, which drifts over a large data set and stops counting at 2^24; this one carries the
    rounding error along (Kahan, 1965) and counts in int32.

    Attributes:
      total: () float32, the running sum.
      error: () float32, what rounding has taken from it.
      count: () int32, examples seen.

    Example:
      >>> a = Mean.from_model_output(jnp.array([1.0, 2.0, 9.0]), mask=jnp.array([True, True, False]))
      >>> float(a.merge(Mean.from_model_output(jnp.array([6.0]))).compute())
      3.0
    """

    total: Any
    error: Any
    count: Any

    @classmethod
    def empty(cls) -> "Mean":
        return cls(jnp.float32(0), jnp.float32(0), jnp.int32(0))

    @classmethod
    def from_model_output(cls, values: jax.Array, mask: jax.Array | None = None, **_: Any) -> "Mean":
        """From one value per example, (batch,), and an optional boolean mask, (batch,)."""
        if mask is None:
            mask = jnp.ones(values.shape, bool)
        total = jnp.where(mask, values, 0).astype(jnp.float32).sum()
        return cls(total, jnp.float32(0), mask.sum(dtype=jnp.int32))

    def merge(self, other: "Mean") -> "Mean":
        total = self.total + other.total
        virtual = total - self.total
        lost = (self.total - (total - virtual)) + (other.total - virtual)
        return type(self)(total, self.error + other.error + lost, self.count + other.count)

    def compute(self) -> Any:
        return (self.total + self.error) / self.count


def _accuracy(*, logits: Any, targets: Any, **_: Any) -> jax.Array:
    return _correct(logits, targets, k=1)


def _cross_entropy(*, logits: Any, targets: Any, **_: Any) -> jax.Array:
    return losses.cross_entropy(logits, targets)


Loss = Mean.from_output("loss")
"""Mean of the loss, each example times its weight, divided by the number of examples, as Keras does."""

Accuracy = Mean.from_fun(_accuracy)
"""Share of examples whose largest logit is the label's class; for one binary logit, whose sign is.

Soft targets count as their largest class.
"""

CrossEntropy = Mean.from_fun(_cross_entropy)
"""Mean softmax (or, for one binary logit, sigmoid) cross-entropy, whatever the training loss is; never weighted."""


@functools.cache
def top_k_accuracy(k: int) -> type[Mean]:
    """The metric class of the share of examples whose class is among the k largest logits.

    Args:
      k: how many guesses an example has.
    """

    def top_k(*, logits: Any, targets: Any, **_: Any) -> jax.Array:
        return _correct(logits, targets, k=k)

    metric: type[Mean] = Mean.from_fun(top_k)
    return metric


def _correct(logits: Any, targets: Any, *, k: int) -> jax.Array:
    kind, logits, labels = losses.task(logits, targets)
    if kind == "binary":
        if k > 1:
            raise LabelError(f"top_{k}_accuracy needs {k} classes or more; the network has one binary output.")
        return jnp.asarray((logits > 0) == (labels > 0.5), jnp.float32)
    if k > logits.shape[1]:
        raise LabelError(f"top_{k}_accuracy needs {k} classes or more; the network has {logits.shape[1]}.")
    if kind == "soft":
        labels = labels.argmax(axis=1)
    # The class is in the top k if fewer than k others are larger. Ties go to the lower class number, as in argmax.
    score = jnp.take_along_axis(logits, labels[:, None], axis=1)
    earlier = jnp.arange(logits.shape[1])[None, :] < labels[:, None]
    ahead = (logits > score) | ((logits == score) & earlier)
    # A row of NaN is never right.
    return jnp.asarray((ahead.sum(axis=1) < k) & ~jnp.isnan(score[:, 0]), jnp.float32)


def _of_function(function: Callable[[Any, Any], jax.Array]) -> type[Mean]:
    def per_example(*, outputs: Any, targets: Any, mask: jax.Array, **_: Any) -> jax.Array:
        values = function(outputs, targets)
        if jnp.shape(values) != mask.shape:
            raise LabelError(
                f"The metric {getattr(function, '__name__', function)!r} returned shape {jnp.shape(values)}; expected "
                f"one value per example, {mask.shape}, so that short batches are averaged rightly."
            )
        return values

    metric: type[Mean] = Mean.from_fun(per_example)
    return metric


_BY_NAME: dict[str, type[clu.metrics.Metric]] = {
    "accuracy": Accuracy,
    "cross_entropy": CrossEntropy,
    # Keras's names.
    "acc": Accuracy,
    "crossentropy": CrossEntropy,
    "ce": CrossEntropy,
}


# What a clu collection calls its own.
_RESERVED = {name for name in dir(clu.metrics.Collection) if not name.startswith("_")}


def _resolve(metric: Any) -> type[clu.metrics.Metric]:
    if isinstance(metric, str):
        if metric in _BY_NAME:
            return _BY_NAME[metric]
        if match := re.fullmatch(r"top_([1-9]\d*)_accuracy", metric):
            return top_k_accuracy(int(match[1]))
        raise CompileError(
            f"Unknown metric {metric!r}. Expected 'accuracy', 'top_5_accuracy' (any number), 'cross_entropy', a "
            "clu.metrics.Metric class, or a function of (outputs, labels) that returns one value per example."
        )
    if isinstance(metric, type) and issubclass(metric, clu.metrics.Metric):
        return metric
    if callable(metric) and not isinstance(metric, type):
        return _of_function(metric)
    raise CompileError(f"Expected a metric's name, class or function, got {metric!r}.")


def by_name(metrics: MetricsArgument) -> dict[str, type[clu.metrics.Metric]]:
    """The metrics argument of `Model.compile` as name -> class, in order.

    Example:
      >>> list(by_name(["accuracy", "top_5_accuracy"]))
      ['accuracy', 'top_5_accuracy']
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
    return {name: _resolve(metric) for name, metric in named.items()}


def automatic(loss: losses.Loss | None) -> dict[str, type[clu.metrics.Metric]]:
    """What `compile(metrics="auto")` means: accuracy where the loss is cross-entropy on class labels, else nothing."""
    return {"accuracy": Accuracy} if loss is losses.cross_entropy else {}


def collection(metrics: Mapping[str, type[clu.metrics.Metric]]) -> type[clu.metrics.Collection]:
    """One clu collection of the loss and the given metrics."""
    kind: type[clu.metrics.Collection] = clu.metrics.Collection.create(loss=Loss, **metrics)
    return kind


def names(kind: type[clu.metrics.Collection]) -> list[str]:
    """The names in a collection class, loss first."""
    return [name for name in kind.__annotations__ if not name.startswith("_")]


def from_step(
    kind: type[clu.metrics.Collection], *, outputs: Any, targets: Any, loss: jax.Array, mask: jax.Array
) -> clu.metrics.Collection:
    """The collection of one batch.

    Args:
      kind: a class made by `collection`.
      outputs: what the network returned.
      targets: the labels as they were given.
      loss: (batch,) loss of each example times its weight.
      mask: (batch,) booleans: which rows are examples.
    """
    extra: dict[str, Any] = {}
    if hasattr(outputs, "shape"):
        extra["logits"] = outputs
        if (
            hasattr(targets, "shape")
            and outputs.ndim == 2
            and targets.ndim == 2
            and targets.shape == outputs.shape
            and targets.shape[1] > 1
        ):
            extra["labels"] = targets.argmax(axis=1).astype(jnp.int32)
    if "labels" not in extra and hasattr(targets, "shape") and jnp.issubdtype(targets.dtype, jnp.integer):
        extra["labels"] = targets.reshape(targets.shape[0], -1)[:, 0].astype(jnp.int32)  # clu insists on int32
    return kind.single_from_model_output(outputs=outputs, targets=targets, loss=loss, mask=mask, **extra)
