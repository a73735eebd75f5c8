"""How often the network is right, and how sure it is of the right class."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from resfit import losses
from resfit.errors import LabelError
from resfit.metrics.mean import Mean


def _accuracy(*, logits: Any, targets: Any, **_: Any) -> jax.Array:
    return _correct(logits, targets, k=1)


def _binary_accuracy(*, logits: Any, targets: Any, **_: Any) -> jax.Array:
    if logits.ndim == 1 or logits.shape[1] == 1:
        return _correct(logits, targets, k=1)
    logits, targets = losses.same_shape(logits, targets)
    return jnp.asarray(((logits > 0) == (targets > 0.5)) & ~jnp.isnan(logits), jnp.float32).mean(axis=1)


def _binary_cross_entropy(*, logits: Any, targets: Any, **_: Any) -> jax.Array:
    if logits.ndim == 1 or logits.shape[1] == 1:
        return losses.cross_entropy(logits, targets)
    return losses.binary_cross_entropy(logits, targets)


def _cross_entropy(*, logits: Any, targets: Any, **_: Any) -> jax.Array:
    return losses.cross_entropy(logits, targets)


Accuracy = Mean.from_fun(_accuracy)
"""Share of examples whose largest logit is the label's class; for one binary logit, whose sign is.

Soft targets count as their largest class.
"""

BinaryAccuracy = Mean.from_fun(_binary_accuracy)
"""Share of labels that are right, over all labels of all examples: Keras's "binary_accuracy", for multi-label models.

The prediction of a label is its probability above 0.5. For one binary logit it is `Accuracy`.
"""

BinaryCrossEntropy = Mean.from_fun(_binary_cross_entropy)
"""Mean sigmoid cross-entropy over the labels of each example, whatever the training loss is; never weighted."""

CrossEntropy = Mean.from_fun(_cross_entropy)
"""Mean softmax (or, for one binary logit, sigmoid) cross-entropy, whatever the training loss is; never weighted."""


@functools.lru_cache(maxsize=None, typed=True)  # typed: 1 and True are equal
def top_k_accuracy(k: int) -> type[Mean]:
    """The metric class of the share of examples whose class is among the k largest logits.

    Args:
      k: how many guesses an example has.
    """

    def top_k(*, logits: Any, targets: Any, **_: Any) -> jax.Array:
        return _correct(logits, targets, k=k)

    metric: Any = Mean.from_fun(top_k)
    metric.one_class = True  # of several: it has no meaning for several labels
    return metric  # type: ignore[no-any-return]


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
