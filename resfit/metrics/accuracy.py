"""Accuracy and cross-entropy."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from resfit import losses
from resfit._utils.keywords import checked
from resfit.errors import LabelError
from resfit.metrics.mean import Mean, takes_sums


def _accuracy(*, logits: Any, targets: Any, **_: Any) -> jax.Array:
    return _correct(logits, targets, k=1)


def _binary_accuracy(*, logits: Any, targets: Any, **_: Any) -> jax.Array:
    if logits.ndim == 1 or logits.shape[1:] == (1,):
        return _correct(logits, targets, k=1)
    logits, targets = losses.same_shape(logits, targets)
    return jnp.asarray(((logits > 0) == (targets > 0.5)) & ~jnp.isnan(logits), jnp.float32).mean(axis=1)


def _binary_cross_entropy(*, logits: Any, targets: Any, **_: Any) -> jax.Array:
    if logits.ndim == 1 or logits.shape[1:] == (1,):
        return losses.cross_entropy(logits, targets)
    return losses.binary_cross_entropy(logits, targets)


def _cross_entropy(*, logits: Any, targets: Any, **_: Any) -> jax.Array:
    return losses.cross_entropy(logits, targets)


def _of_rows(name: str, function: Callable[..., jax.Array], *, counts_rows: bool = True) -> Any:
    """Return the mean of a function over rows, which are pixels of dense outputs; see `pixels.by_pixel`."""
    metric: Any = takes_sums(Mean.from_fun(function), name)
    metric.counts_rows = counts_rows
    metric.__module__, metric.__qualname__ = __name__, name.title().replace("_", "")  # pickle finds the class by them
    return metric


Accuracy = _of_rows("accuracy", _accuracy)
"""The share of examples, or pixels, whose largest logit, or sign of one binary logit, is the label.

The class of a soft target is its largest entry.
"""

BinaryAccuracy = _of_rows("binary_accuracy", _binary_accuracy, counts_rows=False)
"""The share of correct labels over all labels of all examples, for multi-label models: "binary_accuracy" in Keras.

A label is predicted if its probability is above 0.5. For one binary logit the metric equals `Accuracy`.
"""

BinaryCrossEntropy = _of_rows("binary_cross_entropy", _binary_cross_entropy, counts_rows=False)
"""The mean sigmoid cross-entropy over the labels of each example, without weights, for any training loss."""

CrossEntropy = _of_rows("cross_entropy", _cross_entropy)
"""The mean softmax cross-entropy, sigmoid for one binary logit, without weights, for any training loss."""


@checked("function arguments")
@functools.lru_cache(maxsize=None, typed=True)  # typed: 1 and True are equal
def top_k_accuracy(k: int) -> type[Mean]:
    """Return the metric class of the share of examples whose class is among the k largest logits.

    Args:
      k: the number of predicted classes per example.
    """

    def top_k(*, logits: Any, targets: Any, **_: Any) -> jax.Array:
        return _correct(logits, targets, k=k)

    metric: Any = _of_rows(f"top_{k}_accuracy", top_k)
    metric.one_class = True  # not defined for several labels per example
    return metric  # type: ignore[no-any-return]


def _correct(logits: Any, targets: Any, *, k: int) -> jax.Array:
    kind, logits, labels = losses.task(logits, targets)
    if kind == "binary":
        if k > 1:
            raise LabelError(f"top_{k}_accuracy got a network with one binary output. Expected {k} classes or more.")
        return jnp.asarray((logits > 0) == (labels > 0.5), jnp.float32)
    if k > logits.shape[1]:
        raise LabelError(
            f"top_{k}_accuracy got a network with {logits.shape[1]} classes. Expected {k} classes or more."
        )
    if kind == "soft":
        labels = labels.argmax(axis=1)
    # The class is in the top k if fewer than k logits are larger. Ties go to the lower class number, as in argmax.
    score = jnp.take_along_axis(logits, labels[:, None], axis=1)
    earlier = jnp.arange(logits.shape[1])[None, :] < labels[:, None]
    ahead = (logits > score) | ((logits == score) & earlier)
    # A row of NaN is never correct.
    return jnp.asarray((ahead.sum(axis=1) < k) & ~jnp.isnan(score[:, 0]), jnp.float32)
