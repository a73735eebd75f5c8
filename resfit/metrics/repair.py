"""Metrics of clu that today's JAX breaks."""

import functools
from typing import Any

import clu.metrics
import flax.struct
import jax.numpy as jnp

from resfit.errors import CompileError


@functools.cache
def repaired(metric: type[clu.metrics.Metric]) -> type[clu.metrics.Metric]:
    """A metric of clu as it is meant to work, or an error that says why it cannot.

    `clu.metrics.Std` (0.0.12) calls `jnp.clip` with an argument that JAX has dropped; here it is the same formula.

    Args:
      metric: any metric class.

    Raises:
      CompileError: for a CollectingMetric, which grows with the data, where a compiled step needs sums of fixed size.
    """
    if issubclass(metric, clu.metrics.CollectingMetric):
        raise CompileError(
            f"The metric {metric.__name__} collects values (clu.metrics.CollectingMetric), and a compiled step can "
            "only carry sums of one size. Expected a metric that adds up; or compute it from model.predict(x)."
        )
    if not issubclass(metric, clu.metrics.Std):
        return metric

    def compute(self: Any) -> Any:
        mean = self.total / self.count
        return jnp.sqrt(jnp.maximum(self.sum_of_squares / self.count - mean**2, 0))

    std: Any = type(metric.__name__, (metric,), {"compute": compute, "__doc__": metric.__doc__})
    working: type[clu.metrics.Metric] = flax.struct.dataclass(std)
    return working
