"""The collection of metrics that the steps carry, and what one batch adds to it."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp

from resfit.metrics.mean import Loss


class Collection(clu.metrics.Collection):  # type: ignore[misc]  # clu is untyped
    """A clu collection in which metrics that read the same sums carry them once."""

    multi_label: ClassVar[bool] = False
    readings: ClassVar[Mapping[str, tuple[str, type[clu.metrics.Metric]]]] = {}  # name -> (field of the sums, metric)

    def compute(self) -> dict[str, Any]:
        """The metrics by name, loss first."""
        values = {}
        for name, (field, metric) in self.readings.items():
            sums = getattr(self, field)
            values[name] = (sums if type(sums) is metric else metric(**vars(sums))).compute()
        return values


def collection(metrics: Mapping[str, type[clu.metrics.Metric]], *, multi_label: bool = False) -> type[Collection]:
    """Return one clu collection class of the loss and the given metrics.

    With multi_label, metrics of clu that read `labels` receive the labels of all outputs. Else, where the labels are a
    matrix like the outputs, each row's largest one.

    Metrics whose `shares` attribute is the same have the same sums: all that count a confusion matrix, for instance.

    Example:
      >>> from resfit.metrics import f1, precision
      >>> kind = collection({"precision": precision(10), "f1": f1(10)})
      >>> names(kind), [name for name in kind.__annotations__]
      (['loss', 'precision', 'f1'], ['loss', 'precision'])
    """
    return _collection(tuple(metrics.items()), multi_label)


@functools.lru_cache(maxsize=128)  # a second model with the same metrics has the same class, hence the same steps
def _collection(metrics: tuple[tuple[str, type[clu.metrics.Metric]], ...], multi_label: bool) -> type[Collection]:
    fields: dict[Any, str] = {}  # what is shared -> the field that holds it
    readings = {}
    for name, metric in (("loss", Loss), *metrics):
        readings[name] = (fields.setdefault(getattr(metric, "shares", metric), name), metric)
    held = {field: readings[field][1] for field in fields.values()}
    kind: type[Collection] = flax.struct.dataclass(
        type("Metrics", (Collection,), {"__annotations__": held, "readings": readings, "multi_label": multi_label})
    )
    return kind


def names(kind: type[Collection]) -> list[str]:
    """The names in a collection class, loss first."""
    return list(kind.readings)


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
        if issubclass(kind, Collection) and kind.multi_label and outputs.ndim == 2 and outputs.shape[1] > 1:
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
        extra["labels"] = targets.reshape(targets.shape[0], -1)[:, 0].astype(jnp.int32)  # clu insists on int32
    return kind.single_from_model_output(outputs=outputs, targets=targets, loss=loss, mask=mask, **extra)
