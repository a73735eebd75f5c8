"""Repairs of clu metrics that fail with current versions of JAX."""

import functools
from typing import Any

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp

from resfit.errors import CompileError


@functools.cache
def repaired(metric: type[clu.metrics.Metric]) -> type[clu.metrics.Metric]:
    """Return a working form of a metric of clu. Raise if no form works.

    `clu.metrics.Std` (0.0.12) calls `jnp.clip` with an argument that JAX has removed. The result uses the same formula.

    Args:
      metric: any metric class.

    Raises:
      CompileError: for a CollectingMetric: its values grow with the data, and a compiled step needs sums of fixed size.
        For a class without `flax.struct.dataclass`: JAX does not know its sums.
    """
    if issubclass(metric, clu.metrics.CollectingMetric):
        raise CompileError(
            f"The metric {metric.__name__} collects values (clu.metrics.CollectingMetric), and a compiled step needs "
            "sums of fixed size. Expected a metric of sums. Or compute the metric from model.predict(x)."
        )
    if not _is_known(metric):
        raise CompileError(
            f"JAX does not know the sums of the metric {metric.__name__}: the class has no decorator. Expected a "
            "dataclass of flax with a field for each sum. Write @flax.struct.dataclass above the class."
        )
    if not issubclass(metric, clu.metrics.Std):
        return metric

    def compute(self: Any) -> Any:
        mean = self.total / self.count
        return jnp.sqrt(jnp.maximum(self.sum_of_squares / self.count - mean**2, 0))

    std: Any = type(metric.__name__, (metric,), {"compute": compute, "__doc__": metric.__doc__})
    working: type[clu.metrics.Metric] = flax.struct.dataclass(std)
    return working


def _is_known(metric: Any) -> bool:
    """Return True if the class, or what it returns as empty sums, is a node of JAX's trees."""
    if not jax.tree_util.all_leaves([metric.__new__(metric)]):
        return True
    try:
        return not jax.tree_util.all_leaves([metric.empty()])
    except (TypeError, NotImplementedError):  # without the decorator, the class has no constructor
        return False
