"""The metrics of the members of an ensemble, and of their mean."""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from resfit import losses
from resfit.callbacks.display.text import number
from resfit.data import Geometry, as_batches
from resfit.data.relabeled import relabeled
from resfit.ensemble.history import mean, stacked, standard_error, texts
from resfit.errors import CompileError, LabelError, ModuleError
from resfit.losses.by_output import ByOutput, outputs_by_name
from resfit.model import Model
from resfit.trainer.learned.input_format import spec_entry
from resfit.trainer.loop.predictor import Asked
from resfit.trainer.supervised import Supervised
from resfit.trainer.views import mean_for_loss


@dataclasses.dataclass(frozen=True, repr=False)
class Scores:
    """Loss and metrics on one dataset.

    Attributes:
      members: name -> (members, ...) values of the members.
      ensemble: name -> value of the mean prediction of the members, see `combined`.

    Example:
      >>> scores = Scores({"accuracy": np.array([0.8, 0.9, 1.0])}, {"accuracy": 1.0})
      >>> scores.mean["accuracy"].round(6), scores.standard_error["accuracy"].round(4)
      (np.float64(0.9), np.float64(0.0577))
      >>> scores
                mean of 3 members  ensemble
      accuracy    0.9000 ± 0.0577    1.0000
    """

    members: dict[str, np.ndarray]
    ensemble: dict[str, Any]

    @property
    def mean(self) -> dict[str, np.ndarray]:
        """The mean over the members, by name."""
        return {name: mean(values) for name, values in self.members.items()}

    @property
    def standard_error(self) -> dict[str, np.ndarray]:
        """The standard error of the mean, by name. NaN for a single member."""
        return {name: standard_error(values) for name, values in self.members.items()}

    def __repr__(self) -> str:
        members = len(next(iter(self.members.values())))
        rows = [("", f"mean of {members} member{'' if members == 1 else 's'}", "ensemble")]
        for name, text in texts(self.members).items():
            one = self.ensemble[name]
            rows.append((name, text, number(name, float(one))))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join([name.ljust(widths[0]), text.rjust(widths[1]), one.rjust(widths[2])]) for name, text, one in rows
        )


def logits(
    model: Model, given: Mapping[str, Any], x: Any, batch_size: int | None, weights: str, tta: str | None
) -> Any:
    """Return the outputs of a member, with the mean over the views that its `evaluate` takes.

    Args:
      model: the member.
      given: the arguments of its `compile`.
      x: as in `Model.evaluate`.
      batch_size: as in `Model.evaluate`.
      weights: as in `Model.evaluate`.
      tta: as in `Model.evaluate`.
    """
    means = mean_for_loss(Supervised(losses.get(given["loss"], given.get("loss_weights"))))
    batches = model._predicted(Asked("logits", tta, means), x, batch_size, weights=weights)
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *batches)


def measured(
    first: Model, given: Mapping[str, Any], outputs: Any, x: Any, y: Any, batch_size: int | None, sample_weight: Any
) -> Scores:
    """Return the scores of the outputs of all members.

    Args:
      first: the first member.
      given: the arguments of its `compile`.
      outputs: (members, examples, ...) for each output.
      x: as in `Model.evaluate`.
      y: as in `Model.evaluate`.
      batch_size: as in `Model.evaluate`.
      sample_weight: as in `Model.evaluate`.

    Raises:
      CompileError: for several outputs and one loss.
      LabelError: if there are no labels.
    """
    if not isinstance(outputs, np.ndarray) and not isinstance(given["loss"], Mapping | tuple | list):
        raise CompileError(
            f"The members return {jax.tree.structure(outputs)}, and loss is one function. Expected losses by "
            "output. Evaluate each member: [model.evaluate(x, y) for model in ensemble.members]."
        )
    data = as_batches(x, y, sample_weight, geometry=Geometry(32 if batch_size is None else batch_size))
    batches = relabeled(data, first.class_names, "x", losses.ignore_index(losses.get(given["loss"])))
    labels, row_weights = zip(*((batch.y, batch.weight) for batch in batches.epoch(0)), strict=True)
    if labels[0] is None:
        raise LabelError("There are no labels to evaluate on: got y=None. Pass y, or data with labels, as (x, y).")
    y, sample_weight = (jax.tree.map(lambda *arrays: np.concatenate(arrays), *of) for of in (labels, row_weights))
    return scores(
        outputs, y, sample_weight, loss=given["loss"], loss_weights=given.get("loss_weights"),
        metrics=given["metrics"], multi_label=bool(first.multi_label),
        num_classes=spec_entry(first.module, "num_classes"),
    )  # fmt: skip


class _Spec(NamedTuple):
    """The entry of a network's spec that metrics by class read."""

    num_classes: int | None


class Outputs(nnx.Module):
    """A module that returns its inputs: outputs that are known already can be evaluated by a `Model`.

    Args:
      num_classes: of the network that made the outputs; None if it does not state them.
    """

    def __init__(self, num_classes: int | None = None) -> None:
        self.spec = _Spec(num_classes)

    def __call__(self, x: Any) -> Any:
        return x


def scores(
    outputs: Any,
    y: Any,
    sample_weight: Any,
    *,
    loss: Any,
    loss_weights: Any,
    metrics: Any,
    multi_label: bool,
    num_classes: int | None,
) -> Scores:
    """Return the scores of known outputs.

    Args:
      outputs: (members, examples, ...); or a dict, tuple or list of these, for losses by output.
      y: labels.
      sample_weight: of each example, or None.
      loss: as in `Model.compile`.
      loss_weights: as in `Model.compile`.
      metrics: as in `Model.compile`. The calibration error is added for a single output, where it is defined.
      multi_label: True if every value of a single output is an independent label.
      num_classes: of the network; None if it does not state them.
    """
    resolved = losses.get(loss, loss_weights)
    together: Any
    if isinstance(resolved, ByOutput):
        outputs, labels = outputs_by_name(outputs, "loss"), resolved.labels_by_name(y)
        kinds = {name: kind_of(resolved.loss_of.get(name), one, labels.get(name)) for name, one in outputs.items()}
        together = {name: combined(one, kinds[name]) for name, one in outputs.items()}
    else:
        kind = "labels" if multi_label else kind_of(resolved, outputs, y)
        metrics = _with_calibration(metrics) if kind == "classes" else metrics
        together = combined(outputs, kind)
    model = Model(Outputs(num_classes))
    model.compile(loss=loss, metrics=metrics, loss_weights=loss_weights, preprocess=None)

    def metrics_of(one: Any) -> dict[str, Any]:
        found: dict[str, Any] = model.evaluate(one, y, 256, 0, sample_weight, return_dict=True)
        return found

    members = len(jax.tree.leaves(outputs)[0])
    each = [jax.tree.map(operator.itemgetter(i), outputs) for i in range(members)]
    return Scores(stacked(map(metrics_of, each)), metrics_of(together))


def outputs_of_members(each: list[Any]) -> Any:
    """Return the outputs of all members with a first axis for the members.

    Args:
      each: the outputs of each member, arrays or pytrees of arrays.

    Raises:
      ModuleError: if their shapes differ.
    """
    shapes = [jax.tree.map(np.shape, one) for one in each]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ModuleError(
                f"Member 0 returns outputs of shape {shapes[0]}, and member {i} of shape {shape}. Expected "
                "networks with the same outputs. Let make(seed) return one architecture for all seeds."
            )
    return jax.tree.map(lambda *arrays: np.stack(arrays), *each)


def is_of_values(loss: Any) -> bool:
    """Return True for a loss of resfit, or its name, whose outputs are values and not logits."""
    if loss is None or isinstance(loss, Mapping | tuple | list):
        return False
    resolved = losses.get(loss)
    return losses.multi_label(resolved) is False and kind_of(resolved, np.zeros((1, 1)), None) == "values"


def kind_of(loss: Any, outputs: np.ndarray, y: Any) -> str:
    """Return the kind of outputs, as in `combined`: by the loss, else by the labels."""
    if losses.takes_labels(loss):
        return "classes"
    if loss is losses.binary_cross_entropy or isinstance(loss, losses.BinaryCrossEntropy):  # a sigmoid for each value
        return "labels"
    if loss is losses.kl_divergence:
        return "distributions"
    if losses.multi_label(loss) is False:  # another loss of resfit
        return "values"
    labels = np.asarray(y)
    of_classes = labels.dtype.kind in "iub" and outputs.ndim - 1 > labels.ndim and outputs.shape[-1] > 1
    return "classes" if of_classes else "values"


def combined(outputs: np.ndarray, kind: str) -> np.ndarray:
    """Return the outputs whose probabilities are the mean probabilities of the members.

    Args:
      outputs: (members, examples, ...) logits.
      kind: "classes", of one class for each example; "distributions" over classes, combined in the same way; "labels",
        of independent labels; or "values", which are averaged themselves.

    Returns:
      (examples, ...) float32.

    Example:
      >>> p = np.array([[[0.9, 0.1]], [[0.5, 0.5]]])
      >>> np.exp(combined(np.log(p), "classes")).round(6)
      array([[0.7, 0.3]], dtype=float32)
    """
    z = np.asarray(outputs, np.float64)
    if kind == "values":
        found = z.mean(0)
    elif kind == "labels" or z.shape[-1] == 1 or z.ndim == 2:
        on, off = (np.logaddexp.reduce(-np.logaddexp(0, sign * z), axis=0) for sign in (-1, 1))
        found = on - off
    else:
        logs = z - np.logaddexp.reduce(z, axis=-1, keepdims=True)
        found = np.logaddexp.reduce(logs, axis=0) - np.log(len(z))
    return np.asarray(found, np.float32)


def _with_calibration(metrics: Any) -> Any:
    """Return the metrics and the calibration error, by its name."""
    name = "calibration_error"
    if metrics is None:
        return [name]
    if isinstance(metrics, str):
        return ["accuracy", name] if metrics == "auto" else [metrics, name]
    if isinstance(metrics, dict):
        return {name: name} | metrics
    return [*metrics] if name in metrics else [*metrics, name]
