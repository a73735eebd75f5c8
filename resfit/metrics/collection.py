"""The metrics of a model, and their sums over batches."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from resfit._utils.keywords import checked
from resfit.losses.pixels import fits
from resfit.metrics.mean import Loss
from resfit.metrics.pixels import by_pixel, of_pixels, sums_of, wide


@flax.struct.dataclass
class Sums:
    """The sums of a collection: a pytree that can be merged with the sums of other batches.

    JAX keeps every pytree class until the process ends, so all collections share this class. One class per collection
    would keep the metric functions of every model, and the arrays of their closures.

    Attributes:
      batches: the number of merged batches, () int32.
      held: the metrics of the collection's fields, in order.
      collection: the collection of these sums.
    """

    batches: Any
    held: tuple[clu.metrics.Metric, ...]
    collection: "Collection" = flax.struct.field(pytree_node=False)

    def merge(self, other: "Sums") -> "Sums":
        """Return the sums of both."""
        held = tuple(mine.merge(theirs) for mine, theirs in zip(self.held, other.held, strict=True))
        return Sums(self.batches + other.batches, held, self.collection)

    def compute(self) -> dict[str, Any]:
        """Return the metrics by name, loss first."""
        fields = dict(zip(self.collection.fields, self.held, strict=True))
        values = {}
        for name, (field, metric) in self.collection.readings.items():
            sums = fields[field]
            values[name] = (sums if type(sums) is metric else metric(**vars(sums))).compute()
        return values


class Summed(abc.ABC):
    """The metrics of a model, as the steps carry them: sums that are pytrees.

    Attributes:
      readings: the names of all values, in order, and where each one is found.
    """

    readings: Mapping[str, Any]

    @abc.abstractmethod
    def empty(self) -> Any:
        """Return the sums of no examples."""

    @abc.abstractmethod
    def of_step(self, *, outputs: Any, targets: Any, loss: Any, mask: jax.Array) -> Any:
        """Return the sums of one batch, see `from_step`."""

    @abc.abstractmethod
    def classes(self) -> Mapping[str, Mapping[str, type[clu.metrics.Metric]]]:
        """Return the name of each output ("" for the only one) -> the metric classes of the output by name."""

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Return the sums with these leaves, in the order of `jax.tree.leaves`."""
        return jax.tree.unflatten(self._structure, leaves)

    def packed(self, sums: Any, stack: Callable[[list[Any]], Any] = jnp.stack) -> tuple[Any, ...]:
        """Return the sums as few arrays: the scalars of a dtype are one, because a step takes and returns each array.

        Args:
          sums: in the structure of `empty`.
          stack: the function that makes an array of scalars.
        """
        leaves = jax.tree.leaves(sums)
        groups = ([leaves[i] for i in group] for group in self._groups)
        return tuple(group[0] if len(group) == 1 else stack(group) for group in groups)

    def unpacked(self, arrays: Sequence[Any]) -> Any:
        """Return the sums from a result of `packed`."""
        leaves: dict[int, Any] = {}
        for group, array in zip(self._groups, arrays, strict=True):
            leaves |= {group[0]: array} if len(group) == 1 else {i: array[place] for place, i in enumerate(group)}
        return self.unflatten([leaves[i] for i in range(len(leaves))])

    @functools.cached_property
    def _groups(self) -> list[list[int]]:
        """The numbers of the leaves in each array of `packed`."""
        groups: dict[Any, list[int]] = {}
        for i, leaf in enumerate(map(np.asarray, jax.tree.leaves(self.empty()))):
            groups.setdefault(i if leaf.ndim else leaf.dtype, []).append(i)
        return list(groups.values())

    @functools.cached_property
    def _structure(self) -> Any:
        return jax.tree.structure(self.empty())


@dataclasses.dataclass(frozen=True, eq=False)
class Collection(Summed):
    """The metrics of a model, or of one of its outputs. Metrics that read the same sums carry them once.

    Attributes:
      fields: the metric classes that hold sums, by name, loss first.
      readings: every metric's name -> (the field that holds its sums, the metric class).
      multi_label: True if every output is an independent label.
      ignore_index: the label of pixels without a class, or None.
    """

    fields: Mapping[str, type[clu.metrics.Metric]]
    readings: Mapping[str, tuple[str, type[clu.metrics.Metric]]]
    multi_label: bool = False
    ignore_index: int | None = None

    def empty(self) -> Sums:
        """Return the sums of no examples."""
        return self._sums(metric.empty() for metric in self.fields.values())

    def classes(self) -> Mapping[str, Mapping[str, type[clu.metrics.Metric]]]:
        return {"": {name: metric for name, (_, metric) in self.readings.items()}}

    def decided_by(self) -> tuple[Any, ...]:
        """Return the values that define sums and metrics, see `backends.by_value`."""
        return self.fields, self.readings, self.multi_label, self.ignore_index

    def of_step(self, *, outputs: Any, targets: Any, loss: Any, mask: jax.Array) -> Sums:
        pixels = of_pixels(self.fields.values(), outputs, targets, mask, self.ignore_index)
        if pixels is not None:
            pixels |= _for_clu(self, pixels["outputs"], pixels["targets"])
        extra = _for_clu(self, outputs, targets)
        given = {"outputs": outputs, "targets": targets, "loss": loss, "mask": mask, **extra}
        return self._sums(sums_of(metric, given, pixels) for metric in self.fields.values())

    def _sums(self, held: Iterable[clu.metrics.Metric]) -> Sums:
        return Sums(jnp.array(1, jnp.int32), tuple(held), self)


@checked("function arguments")
def collection(
    metrics: Mapping[str, type[clu.metrics.Metric]],
    *,
    multi_label: bool = False,
    with_loss: bool = True,
    ignore_index: int | None = None,
) -> Collection:
    """Return the collection of the loss, unless `with_loss` is False, and the given metrics.

    Metrics of clu that read `labels` receive the labels of all outputs if multi_label is True. Otherwise, for labels
    in a matrix like the outputs, they receive the largest entry of each row.

    With an ignore_index, metrics that count pixels leave out those with this label, and count in 61 bits.

    Metrics with the same `shares` attribute have the same sums, for example all metrics of a confusion matrix.

    Example:
      >>> from resfit.metrics import f1, precision
      >>> kind = collection({"precision": precision(10), "f1": f1(10)})
      >>> names(kind), list(kind.fields)
      (['loss', 'precision', 'f1'], ['loss', 'precision'])
    """
    fields: dict[Any, str] = {}  # `shares` attribute -> the field that holds the sums
    readings = {}
    for name, given in ((("loss", Loss),) if with_loss else ()) + tuple(metrics.items()):
        metric = wide(given) if ignore_index is not None and by_pixel(given, ignore_index) else given
        readings[name] = (fields.setdefault(getattr(metric, "shares", metric), name), metric)
    return Collection({field: readings[field][1] for field in fields.values()}, readings, multi_label, ignore_index)


@checked("function arguments")
def names(kind: Summed) -> list[str]:
    """Return the names in a collection, loss first."""
    return list(kind.readings)


@checked("function arguments")
def from_step(kind: Summed, *, outputs: Any, targets: Any, loss: Any, mask: jax.Array) -> Any:
    """Return the sums of one batch.

    Args:
      kind: a result of `collection` or `by_output`.
      outputs: the outputs of the network.
      targets: the labels of the batch.
      loss: the loss of each example times its weight, (batch,); or `losses.by_output.LossesByOutput`.
      mask: True for rows that are examples and False for padding, (batch,).
    """
    return kind.of_step(outputs=outputs, targets=targets, loss=loss, mask=mask)


def _for_clu(kind: Collection, outputs: Any, targets: Any) -> dict[str, Any]:
    """Return the arguments that metrics of clu read: logits, and labels as int32."""
    extra: dict[str, Any] = {}
    if hasattr(outputs, "shape"):
        extra["logits"] = outputs
        if kind.multi_label and outputs.ndim == 2 and outputs.shape[1] > 1:
            extra["labels"] = targets
        elif (
            hasattr(targets, "shape")
            and outputs.ndim == 2
            and targets.ndim == 2
            and targets.shape == outputs.shape
            and targets.shape[1] > 1
        ):
            extra["labels"] = targets.argmax(axis=1).astype(jnp.int32)
    if "labels" not in extra and hasattr(targets, "shape") and jnp.issubdtype(targets.dtype, jnp.integer):
        labels = targets if fits(outputs, targets) else targets.reshape(targets.shape[0], -1)[:, 0]
        extra["labels"] = labels.astype(jnp.int32)  # clu requires int32
    return extra
