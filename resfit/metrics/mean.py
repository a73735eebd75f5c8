"""Exact means over examples, on the device."""

from typing import Any

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp

from resfit._utils.keywords import shown
from resfit.errors import ArgumentError


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """Return the float sum of two arrays and its rounding error (Knuth, 1969)."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)


def takes_sums(metric: Any, name: str) -> Any:
    """Name a metric class, and raise `ArgumentError` with the form that `compile` takes where it is made without sums.

    Args:
      metric: a dataclass of sums.
      name: what `compile` reports the metric as, and calls it.

    Example:
      >>> from resfit.metrics import Accuracy
      >>> Accuracy(num_classes=3)
      Traceback (most recent call last):
      ...
      resfit.errors.ArgumentError: The metric 'accuracy' was made from num_classes=3. Expected the class, which makes
      its sums in each step. Use compile(metrics=['accuracy']).
    """
    init = metric.__init__

    # Arguments by any name: `keywords.check_constructors` leaves it as it is.
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except TypeError:
            given = [*map(shown, args), *(f"{word}={shown(value)}" for word, value in kwargs.items())]
            raise ArgumentError(
                f"The metric {name!r} was made from {', '.join(given) or 'nothing'}. Expected the class, which makes "
                f"its sums in each step. Use compile(metrics=[{name!r}])."
            ) from None

    metric.__init__ = __init__
    metric.__name__ = metric.__qualname__ = name
    return metric


@flax.struct.dataclass
class Mean(clu.metrics.Metric):  # type: ignore[misc]  # clu is untyped
    """The mean over examples, exact for any number of batches.

    `Average` of clu sums in float32, which drifts over a large dataset and stops counting at 2^24. This metric carries
    the rounding error along (Kahan, 1965) and counts in int32.

    Attributes:
      total: the running sum, () float32.
      error: the rounding error of `total`, () float32.
      count: the number of examples, () int32.

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
        """Return the sums of one value per example, (batch,), and an optional boolean mask (batch,)."""
        if mask is None:
            mask = jnp.ones(values.shape, bool)
        total = jnp.where(mask, values, 0).astype(jnp.float32).sum()
        return cls(total, jnp.float32(0), mask.sum(dtype=jnp.int32))

    def merge(self, other: "Mean") -> "Mean":
        total, lost = two_sum(self.total, other.total)
        return type(self)(total, self.error + other.error + lost, self.count + other.count)

    def compute(self) -> Any:
        return (self.total + self.error) / self.count


Loss = Mean.from_output("loss")
"""The sum of weight * loss, divided by the number of examples, as in Keras."""
