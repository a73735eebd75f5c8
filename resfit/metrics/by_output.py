"""Metrics of a module with several outputs: a collection for each output, and one for the total loss."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import clu.metrics
import flax.struct
import jax

from resfit import losses
from resfit.errors import CompileError, LabelError
from resfit.losses.by_output import (
    ByOutput,
    LossesByOutput,
    about,
    by_name,
    check_names,
    is_by_output,
    outputs_by_name,
    total,
)
from resfit.metrics.collection import Collection, Summed, Sums, collection
from resfit.metrics.metric_names import MetricsArgument, automatic
from resfit.metrics.metric_names import by_name as classes_by_name

_TOTAL = ""  # the name of the collection that holds the total loss


@flax.struct.dataclass
class SumsByOutput:
    """The sums of a `CollectionByOutput`: a pytree that can be merged with the sums of other batches.

    Attributes:
      held: the name of an output -> its sums.
      collection: the collection of these sums.
    """

    held: dict[str, Sums]
    collection: "CollectionByOutput" = flax.struct.field(pytree_node=False)

    def merge(self, other: "SumsByOutput") -> "SumsByOutput":
        """Return the sums of both."""
        held = {name: sums.merge(other.held[name]) for name, sums in self.held.items()}
        return SumsByOutput(held, self.collection)

    def compute(self) -> dict[str, Any]:
        """Return the values by name: the total loss, the losses of the outputs, their metrics."""
        values = {output: sums.compute() for output, sums in self.held.items()}
        return {name: values[output][own] for name, (output, own) in self.collection.readings.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class CollectionByOutput(Summed):
    """The metrics of a model with several outputs.

    Attributes:
      parts: the name of an output -> its metrics; "" -> the total loss.
      readings: the name of a value, such as "a_loss" -> (name of the output, name in its collection).
      loss: of the model, which knows the outputs of labels without names; None if it is not by output.
    """

    parts: Mapping[str, Collection]
    readings: Mapping[str, tuple[str, str]]
    loss: ByOutput | None = None

    def empty(self) -> SumsByOutput:
        return SumsByOutput({name: part.empty() for name, part in self.parts.items()}, self)

    def classes(self) -> Mapping[str, Mapping[str, type[clu.metrics.Metric]]]:
        return {output: part.classes()[""] for output, part in self.parts.items() if output != _TOTAL}

    def decided_by(self) -> tuple[Any, ...]:
        """Return the values that define sums and metrics, see `backends.by_value`."""
        return self.parts, self.readings

    def of_step(self, *, outputs: Any, targets: Any, loss: Any, mask: jax.Array) -> SumsByOutput:
        whole = total(loss)
        held = {_TOTAL: self.parts[_TOTAL].of_step(outputs=None, targets=None, loss=whole, mask=mask)}
        given = outputs_by_name(outputs, "metrics")
        labels = {} if targets is None else self._labels_by_name(targets)
        check_names((name for name in self.parts if name), given, "metrics", "outputs of the module", CompileError)
        for name, part in self.parts.items():
            if name == _TOTAL:
                continue
            with about(name):
                if labels.get(name) is None:
                    raise LabelError(
                        "There are no labels for the metrics of this output in y. Expected labels for every output "
                        "with metrics. Pass the labels, or leave the metrics out."
                    )
                own = loss.each.get(name, whole) if isinstance(loss, LossesByOutput) else whole
                held[name] = part.of_step(outputs=given[name], targets=labels[name], loss=own, mask=mask)
        return SumsByOutput(held, self)

    def _labels_by_name(self, labels: Any) -> dict[str, Any]:
        if self.loss is not None:
            return self.loss.labels_by_name(labels)
        return by_name(labels, "y", LabelError)


def are_by_output(metrics: MetricsArgument, loss: losses.Loss | None) -> bool:
    """Return True if the metrics of `compile` are given by output: if its loss is, or an entry is itself a container.

    Example:
      >>> are_by_output({"a": ["accuracy"]}, None), are_by_output({"a": "accuracy"}, None)
      (True, False)
    """
    entries = metrics.values() if isinstance(metrics, Mapping) else metrics if isinstance(metrics, list | tuple) else ()
    return isinstance(loss, ByOutput) or any(map(is_by_output, entries))


def by_output(metrics: MetricsArgument, loss: losses.Loss | None, *, reports_losses: bool = True) -> CollectionByOutput:
    """Return the metrics of a model with several outputs.

    Args:
      metrics: a dict or list with the `metrics` argument of each output; "auto" for all of them; or None.
      loss: of the model.
      reports_losses: True to report the loss of each output too.

    Raises:
      CompileError: for another form, an unknown metric, or two values of one name.

    Example:
      >>> loss = losses.get({"a": "mse", "b": "auto"})
      >>> list(by_output({"a": ["mae"], "b": ["accuracy"]}, loss).readings)
      ['loss', 'a_loss', 'b_loss', 'a_mae', 'b_accuracy']
    """
    loss_of = loss.loss_of if isinstance(loss, ByOutput) else {}
    if isinstance(metrics, str) and metrics == "auto":
        chosen = {name: automatic(one) if reports_losses else {} for name, one in loss_of.items()}
    else:
        given = by_name({} if metrics is None else metrics, "metrics", CompileError)
        _check_count(metrics, loss)
        chosen = {}
        for name, own in given.items():
            with about(name):
                one = loss_of.get(name)
                auto = isinstance(own, str) and own == "auto"
                chosen[name] = automatic(one) if auto else classes_by_name(own, multi_label=losses.multi_label(one))
    parts = {_TOTAL: collection({})}
    for name in dict.fromkeys([*loss_of, *chosen]):
        with_loss = reports_losses and name in loss_of
        if with_loss or chosen.get(name):
            several = bool(losses.multi_label(loss_of.get(name)))
            ignored = losses.ignore_index(loss_of.get(name))
            parts[name] = collection(
                chosen.get(name, {}), multi_label=several, with_loss=with_loss, ignore_index=ignored
            )
    return CollectionByOutput(parts, _readings(parts), loss if isinstance(loss, ByOutput) else None)


def _check_count(metrics: Any, loss: Any) -> None:
    """Raise if metrics and losses are lists of different lengths, or metrics are a list of a dict of losses."""
    if not isinstance(metrics, list | tuple) or not isinstance(loss, ByOutput):
        return
    if loss.count is None:
        raise CompileError(
            f"metrics is a {type(metrics).__name__}, and loss is a dict by output. Expected a dict of the same names, "
            f"such as metrics={{{loss.parts[0].name!r}: [...]}}."
        )
    if len(metrics) != loss.count:
        raise CompileError(
            f"metrics has {len(metrics)} entries, and loss has {loss.count}. Expected one entry per output: the name "
            "of a metric, a list of names, or None."
        )


def _readings(parts: Mapping[str, Collection]) -> dict[str, tuple[str, str]]:
    """Return the name of each value -> (output, name in its collection): first all losses, then all metrics."""
    every = [(output, name) for output, part in parts.items() for name in part.readings]
    readings: dict[str, tuple[str, str]] = {}
    for output, name in sorted(every, key=lambda found: found[1] != "loss"):
        whole = f"{output}_{name}" if output else name
        if whole in readings:
            raise CompileError(
                f"Two values would be named {whole!r}: {name!r} of the output {output!r} and {readings[whole][1]!r} of "
                f"the output {readings[whole][0]!r}. Expected different names. Pass the metrics of an output as a dict "
                "of names, or rename an output."
            )
        readings[whole] = output, name
    return readings
