"""Losses of a module with several outputs: one loss for each output, by its name.

A module returns a dict of outputs, whose keys are their names, or a tuple or list, whose entries are named output_0,
output_1 and so on (a named tuple's by its fields). Labels, sample weights and metrics use the same names.
"""

import contextlib
import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from resfit._utils.suggest import did_you_mean
from resfit.errors import CompileError, DataError, LabelError, ModuleError, ResfitError
from resfit.losses.labels import Loss, described


class OutputLoss(NamedTuple):
    """The loss of one output, and its weight in the total."""

    name: str
    loss: Loss
    weight: float


@functools.partial(jax.tree_util.register_dataclass, data_fields=["each"], meta_fields=["weights"])
@dataclasses.dataclass(frozen=True)
class LossesByOutput:
    """The losses of a batch by output, where a model with one output has one array.

    Attributes:
      each: the name of an output -> (batch,), the loss of each example, times its sample weight if there are any.
      weights: (name, weight in the total) of each output, in the order of `compile`.
    """

    each: dict[str, jax.Array]
    weights: tuple[tuple[str, float], ...]

    def map(self, function: Callable[[jax.Array], jax.Array]) -> Self:
        """Return the results of a function of the losses of one output."""
        changed = {}
        for name, _ in self.weights:
            with about(name):
                changed[name] = function(self.each[name])
        return dataclasses.replace(self, each=changed)

    def total(self) -> jax.Array:
        """Return the sum of weight * loss over the outputs, (batch,)."""
        terms = (self.each[name] if weight == 1 else weight * self.each[name] for name, weight in self.weights)
        return functools.reduce(operator.add, terms)

    def weighted(self, weight: Any) -> Self:
        """Return the losses times one weight per example, for all outputs or by output; an output without has 1."""
        if not is_by_output(weight):
            return self.map(lambda each: each * weight)
        weights = check_weights(weight, self.each)
        return dataclasses.replace(
            self, each={name: each * weights[name] if name in weights else each for name, each in self.each.items()}
        )


@dataclasses.dataclass(frozen=True)
class ByOutput:
    """A loss of several outputs: a function of (outputs, labels) that returns the losses of each output.

    Attributes:
      parts: the losses, in order. Other outputs have no loss.
      count: the number of outputs, if `compile` got a list with one entry for each; else None.

    Example:
      >>> from resfit.losses import mean_squared_error
      >>> loss = ByOutput((OutputLoss("a", mean_squared_error, 0.5),))
      >>> losses = loss({"a": np.zeros((2, 1)), "b": np.zeros((2, 1))}, {"a": np.array([[1.0], [2.0]])})
      >>> losses.each["a"].tolist(), losses.total().tolist()
      ([1.0, 4.0], [0.5, 2.0])
    """

    parts: tuple[OutputLoss, ...]
    count: int | None = None

    @property
    def loss_of(self) -> dict[str, Loss]:
        """The losses by the name of their output."""
        return {part.name: part.loss for part in self.parts}

    def labels_by_name(self, labels: Any) -> dict[str, Any]:
        """Return labels by the name of their output, as in Keras.

        One array belongs to the only output with a loss. A list has the labels of all outputs, or only of those with a
        loss.

        Raises:
          LabelError: if the labels have another form.
        """
        names = [part.name for part in self.parts]
        if len(names) == 1 and not is_by_output(labels):
            return {names[0]: labels}
        some = isinstance(labels, list | tuple) and self.count is not None
        if some and len(labels) == len(names) < (self.count or 0):
            return dict(zip(names, labels, strict=True))
        return by_name(labels, "y", LabelError)

    def __call__(self, outputs: Any, labels: Any) -> Any:
        """Return the `LossesByOutput` of a batch."""
        outputs = outputs_by_name(outputs, "loss")
        names = [part.name for part in self.parts]
        check_names(names, outputs, "loss", "outputs of the module", CompileError)
        if self.count not in (None, len(outputs)):
            raise CompileError(
                f"loss has {self.count} entries, and the module returns {len(outputs)} outputs. Expected one entry per "
                "output. Pass None for an output without a loss."
            )
        labels = self.labels_by_name(labels)
        check_names(labels, outputs, "y", "outputs of the module", LabelError)
        each = {}
        for part in self.parts:
            with about(part.name):
                if labels.get(part.name) is None:
                    given = sorted(name for name, own in labels.items() if own is not None)
                    raise LabelError(
                        f"There are no labels for this output: y has those of {given}. Expected labels for "
                        f"every output with a loss, {names}. For an output without labels pass "
                        f"compile(loss={{{part.name!r}: None}})."
                    )
                each[part.name] = part.loss(outputs[part.name], labels[part.name])
        return LossesByOutput(each, tuple((part.name, part.weight) for part in self.parts))


def of_outputs(loss: Any, loss_weights: Any, get: Callable[[Any], Loss]) -> ByOutput:
    """Return the loss of `compile(loss=..., loss_weights=...)` for losses by output.

    Args:
      loss: a dict or list of losses; None for an output without a loss.
      loss_weights: the weights in the total, in the same form; None for 1.
      get: returns the loss function of an entry.

    Raises:
      CompileError: for names that no output can have, weights of other outputs, or no loss at all.
    """
    given = by_name(loss, "loss", CompileError)
    weights = by_name({} if loss_weights is None else loss_weights, "loss_weights", CompileError)
    named = [name for name, one in given.items() if one is not None]
    if not named:
        raise CompileError(f"loss is {loss!r}. Expected a loss for one output or more.")
    if isinstance(loss_weights, list | tuple) and len(weights) != len(given):
        raise CompileError(
            f"loss_weights has {len(weights)} entries, and loss has {len(given)}. Expected one weight for each entry."
        )
    check_names(
        (name for name, weight in weights.items() if weight is not None), given, "loss_weights",
        "outputs with a loss", CompileError,
    )  # fmt: skip
    parts = []
    for name in named:
        with about(name):
            if is_by_output(given[name]):
                raise CompileError(f"The loss is {described(given[name])}. Expected one loss per output, not nested.")
            weight = weights.get(name)
            parts.append(OutputLoss(name, get(given[name]), 1.0 if weight is None else _checked_weight(weight)))
    return ByOutput(tuple(parts), len(given) if isinstance(loss, list | tuple) else None)


def _checked_weight(weight: Any) -> float:
    number = not isinstance(weight, bool) and isinstance(weight, int | float | np.integer | np.floating)
    if not number or not math.isfinite(weight):
        raise CompileError(f"Expected the entries of loss_weights to be finite numbers, got {weight!r}.")
    return float(weight)


def total(losses: Any) -> Any:
    """Return the loss of each example, (batch,): of one output, or the weighted sum over several."""
    return losses.total() if isinstance(losses, LossesByOutput) else losses


def weighted(losses: Any, weight: Any) -> Any:
    """Return losses times the weight of each example, which can be given by output if the losses are.

    Raises:
      DataError: for weights by output of one loss, or for weights of unknown outputs.
    """
    if weight is None:
        return losses
    if isinstance(losses, LossesByOutput):
        return losses.weighted(weight)
    if is_by_output(weight):
        check_weights(weight, None)
    return losses * weight


def check_weights(weight: Any, losses: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return sample weights by output by the name of the output, without the outputs whose weight is None.

    Args:
      weight: a dict, tuple or list.
      losses: by the names of the outputs that have one; None if the loss is one value per example.

    Raises:
      DataError: if the losses do not take the weights.
    """
    if isinstance(weight, Mapping) and any(isinstance(key, int | np.integer) for key in weight):
        raise DataError(
            f"sample_weight is {described(weight)}. Expected the weight of each example, (examples,). Pass weights by "
            "class as class_weight."
        )
    if losses is None:
        raise DataError(
            f"sample_weight is {described(weight)}, weights for each output, and the loss is one value per example. "
            "Expected one array, (examples,). For weights by output compile with losses by output, such as "
            "compile(loss={'a': 'auto', 'b': 'mse'}); for a custom compute_loss put the weights into y."
        )
    weights = {name: one for name, one in by_name(weight, "sample_weight", DataError).items() if one is not None}
    check_names(weights, losses, "sample_weight", "outputs with a loss", DataError)
    for name, one in weights.items():
        if is_by_output(one) and (not isinstance(one, list) or any(getattr(entry, "shape", ()) for entry in one)):
            raise DataError(f"sample_weight[{name!r}] is {described(one)}. Expected one array, (examples,).")
    return weights


# --- names of outputs -------------------------------------------------------------------------------------------------


def is_by_output(value: Any) -> bool:
    """Return True for a dict, tuple or list."""
    return isinstance(value, Mapping | tuple | list)


def by_name(value: Any, argument: str, error: type[ResfitError]) -> dict[str, Any]:
    """Return the entries of a dict, tuple or list by the name of their output.

    Args:
      value: a dict by name; or a tuple or list, whose entries are named output_0, output_1, ...
      argument: the name of the value, for messages.
      error: the class of errors.

    Raises:
      ResfitError: if the value has another form, or its keys cannot be names of outputs.

    Example:
      >>> by_name((1, 2), "y", LabelError), by_name({"a": 1}, "y", LabelError)
      ({'output_0': 1, 'output_1': 2}, {'a': 1})
    """
    if not is_by_output(value):
        raise error(
            f"{argument} is {described(value)}, and losses or metrics are given by output. Expected a dict by the "
            "names of the outputs, or a list for a module that returns a tuple or list."
        )
    entries = entries_by_name(value)
    for name in entries:
        # "val_" starts the names of validation: those of an output "val" would hide them.
        if not isinstance(name, str) or not name or name == "val" or name.startswith("val_"):
            raise error(
                f"{argument} has the key {name!r}, which cannot be the name of an output. Expected text that is not "
                "empty, not 'val', and does not start with 'val_', as the names of validation do. Rename the output."
            )
    return entries


def entries_by_name(value: Any) -> dict[Any, Any]:
    """Return the entries of a dict, tuple or list by name, without a check of the names."""
    if isinstance(value, Mapping):
        return dict(value)
    names = getattr(value, "_fields", None) or [f"output_{i}" for i in range(len(value))]
    return dict(zip(names, value, strict=True))


def outputs_by_name(outputs: Any, argument: str) -> dict[str, Any]:
    """Return the outputs of a module by name.

    Args:
      outputs: of the module.
      argument: the argument of `compile` that is given by output, for messages.

    Raises:
      ModuleError: if the module returns one array, or an output that is not one array.
    """
    if not is_by_output(outputs):
        raise ModuleError(
            f"{argument} is given by output, and the module returns {described(outputs)}. Expected a dict, tuple or "
            f"list of arrays. For a module with one output pass {argument} without names."
        )
    found = by_name(outputs, "The result of the module", ModuleError)
    for name, output in found.items():
        if not hasattr(output, "shape"):
            raise ModuleError(
                f"The output {name!r} of the module is {described(output)}. Expected one array per output, not a "
                "nested structure. Return a flat dict, or override Model.compute_loss."
            )
    return found


def check_names(
    names: Iterable[str], known: Iterable[str], argument: str, whose: str, error: type[ResfitError]
) -> None:
    """Raise if an argument names an unknown output.

    Args:
      names: in the argument.
      known: the names to expect.
      argument: its name, for messages.
      whose: the known names in words.
      error: the class to raise.
    """
    known = list(known)
    for name in names:
        if name not in known:
            remedy = " Pass a dict by these names." if name == "output_0" else did_you_mean(name, known)
            raise error(
                f"{argument} has an entry for the output {name!r}. Expected names of the {whose}, {known}.{remedy}"
            )


@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    """Name the output in an error that its loss, its labels or one of its metrics raises."""
    try:
        yield
    except ResfitError as error:
        error.args = (f"Output {name!r}: {error}",)
        raise
    except Exception as error:
        error.add_note(f"This happened for the output {name!r}.")
        raise
