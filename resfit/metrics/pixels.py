"""Metrics of dense predictions: metrics of one label per example, applied to every pixel."""

import functools
from collections.abc import Iterable
from typing import Any, ClassVar

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from resfit.losses.pixels import fits, pixel_rows
from resfit.metrics.mean import Mean

_BITS = 30


def by_pixel(metric: type[clu.metrics.Metric], ignore_index: int | None = None) -> bool:
    """Return True for a metric that counts pixels if the outputs are dense.

    The attribute `counts_rows` of a metric is False if the mean over an example is the same, unless pixels are ignored.
    """
    counts = getattr(metric, "counts_rows", None)
    return counts or (counts is False and ignore_index is not None) or issubclass(metric, clu.metrics.Accuracy)


def of_pixels(
    metrics: Iterable[type[clu.metrics.Metric]], outputs: Any, targets: Any, mask: jax.Array, ignore_index: int | None
) -> dict[str, Any] | None:
    """Return the pixels of a batch as rows for `from_model_output`, or None if no metric reads them.

    Args:
      metrics: metric classes.
      outputs: the outputs of the network.
      targets: the labels of the batch.
      mask: True for rows that are examples and False for padding, (batch,).
      ignore_index: the label of pixels without a class, or None.
    """
    if not fits(outputs, targets) or not any(by_pixel(metric) for metric in metrics):
        return None
    rows = pixel_rows(outputs, targets, ignore_index)
    valid = jnp.repeat(mask, len(rows.labels) // len(mask))
    if rows.valid is not None:
        valid &= rows.valid
    return {"outputs": rows.logits, "logits": rows.logits, "targets": rows.labels, "mask": valid}


def sums_of(
    metric: type[clu.metrics.Metric], examples: dict[str, Any], pixels: dict[str, Any] | None
) -> clu.metrics.Metric:
    """Return the sums of a batch, over its pixels if the metric counts them, else over its examples.

    Args:
      metric: the class.
      examples: the arguments of `from_model_output`.
      pixels: the arguments for the pixels, see `of_pixels`, or None.
    """
    if pixels is None or not by_pixel(metric):
        return metric.from_model_output(**examples)
    found = metric.from_model_output(**pixels)
    if isinstance(found, Mean):
        # Every example has as many pixels. A count of examples, unlike one of pixels, fits 32 bits.
        each = len(pixels["targets"]) // len(examples["mask"])
        found = type(found)(found.total / each, found.error / each, found.count // each)
    return found


@flax.struct.dataclass
class _Wide(clu.metrics.Metric):  # type: ignore[misc]  # clu is untyped
    """Sums whose integers have 61 bits: an epoch can have more than 2^31 pixels.

    Attributes:
      sums: the sums of the metric, whose integers are below 2^30.
      carry: for each array of integers, the multiples of 2^30 that were taken out of it; int32.
    """

    sums: Any
    carry: tuple[Any, ...]

    narrow: ClassVar[type[clu.metrics.Metric]]

    @classmethod
    def empty(cls) -> "_Wide":
        return cls._carried(cls.narrow.empty())

    @classmethod
    def from_model_output(cls, **model_output: Any) -> "_Wide":
        return cls._carried(cls.narrow.from_model_output(**model_output))

    @classmethod
    def _carried(cls, sums: Any, *carries: tuple[Any, ...]) -> "_Wide":
        leaves, structure = jax.tree.flatten(sums)
        carry = [leaf >> _BITS for leaf in leaves if _is_integer(leaf)]
        leaves = [leaf & ((1 << _BITS) - 1) if _is_integer(leaf) else leaf for leaf in leaves]
        return cls(jax.tree.unflatten(structure, leaves), tuple(map(sum, zip(carry, *carries, strict=True))))

    def merge(self, other: "_Wide") -> "_Wide":
        return self._carried(self.sums.merge(other.sums), self.carry, other.carry)

    def compute(self) -> Any:
        """Return the metric; runs on the host."""
        leaves, structure = jax.tree.flatten(self.sums)
        carry = iter(self.carry)
        leaves = [
            np.asarray(leaf, np.int64) + (np.asarray(next(carry), np.int64) << _BITS) if _is_integer(leaf) else leaf
            for leaf in leaves
        ]
        return self.narrow(**vars(jax.tree.unflatten(structure, leaves))).compute()


def _is_integer(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.integer))


def wide(metric: Any) -> type[clu.metrics.Metric]:
    """Return a metric with sums of 61 bits, and otherwise the same.

    Example:
      >>> from resfit.metrics.accuracy import Accuracy
      >>> wide(Accuracy) is wide(wide(Accuracy))
      True
    """
    return metric if issubclass(metric, _Wide) else _widened(metric)


@functools.cache
def _widened(metric: Any) -> type[clu.metrics.Metric]:
    members: dict[str, Any] = {"narrow": metric, "__module__": __name__, "__doc__": metric.__doc__}
    members |= {"counts_rows": True, "one_class": getattr(metric, "one_class", False)}
    if hasattr(metric, "for_several_labels"):
        members["for_several_labels"] = staticmethod(lambda: wide(metric.for_several_labels()))
    if hasattr(metric, "shares"):
        members["shares"] = (_Wide, metric.shares)
    found: type[clu.metrics.Metric] = flax.struct.dataclass(type(metric.__name__, (_Wide,), members))
    return found
