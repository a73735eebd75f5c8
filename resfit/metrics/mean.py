"""Exact means over examples, on the device."""

from typing import Any

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """The float sum of two arrays, and what rounding took from it (Knuth, 1969)."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)


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
        total, lost = two_sum(self.total, other.total)
        return type(self)(total, self.error + other.error + lost, self.count + other.count)

    def compute(self) -> Any:
        return (self.total + self.error) / self.count


Loss = Mean.from_output("loss")
"""Mean of the loss, each example times its weight, divided by the number of examples, as Keras does."""
