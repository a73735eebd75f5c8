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


def _cross_entropy(*, logits: Any, targets: Any, **_: Any) -> jax.Array:
    return losses.cross_entropy(logits, targets)


Accuracy = Mean.from_fun(_accuracy)
"""Share of examples whose largest logit is the label's class; for one binary logit, whose sign is.

Soft targets count as their largest class.
"""

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
