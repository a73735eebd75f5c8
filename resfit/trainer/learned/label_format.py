"""The labels of a model: one or several per example, and the names of the classes."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from resfit import losses
from resfit import metrics as metrics_
from resfit.data import Batches
from resfit.data.batches import classes_of
from resfit.data.class_weights import check_class_weight
from resfit.data.sources.arrays import is_container
from resfit.errors import CompileError, DataError, LabelError
from resfit.losses.by_output import ByOutput, about, check_weights, entries_by_name, is_by_output
from resfit.metrics.collection import Summed
from resfit.trainer.learned.input_format import spec_entry
from resfit.trainer.step import OutputsShape
from resfit.transforms.class_names import check_class_names

_log = logging.getLogger("resfit")


class LabelFormat:
    """The meaning of a model's outputs and labels.

    Args:
      module: the network; a network of resfit states its number of outputs.
      custom_step: True if a subclass overrides `compute_loss`, which may read labels in any way.

    Attributes:
      loss: of the last `compile`, or None.
      multi_label: True if every output is an independent label; None if that is unknown.
      names: of the classes, by number, or None.
      class_weight: the weights by class of the running training, or None.
    """

    def __init__(self, module: nnx.Module, *, custom_step: bool) -> None:
        self._module, self._custom_step = module, custom_step
        self.loss: losses.Loss | None = None
        self.multi_label: bool | None = None
        self.names: list[str] | None = None
        self.class_weight: Mapping[int, float] | None = None
        self._names_were_set = False  # by the user; otherwise they are those of the training data
        self._one_label_metrics: dict[str, list[str]] = {}  # by output
        self._outputs_shape: tuple[int, ...] | None = None

    @property
    def _num_classes(self) -> int | None:
        number: int | None = spec_entry(self._module, "num_classes")
        return number

    def compiled(self, loss: losses.Loss, metrics: Summed, *, trained: bool) -> None:
        """Take over what `compile` decided.

        Args:
          loss: of the steps.
          metrics: of the steps.
          trained: True if the weights are trained; the meaning of their outputs then stays known.
        """
        by_loss = self.by_loss(loss)
        if by_loss is not None:
            self.multi_label = by_loss
        elif not trained:
            self.multi_label = self.multi_label or None
        self._one_label_metrics = {
            output: [name for name, metric in classes.items() if metrics_.reads_one_label(metric)]
            for output, classes in metrics.classes().items()
        }
        self.loss = loss

    @property
    def ignore_index(self) -> int | None:
        """The label of pixels without a class, or None."""
        return losses.ignore_index(self.loss)

    @property
    def of_pixels(self) -> bool:
        """True if the outputs are known to be those of pixels: (batch, height, width, classes)."""
        return len(self._outputs_shape or ()) > 2

    def by_loss(self, loss: losses.Loss) -> bool | None:
        """Return whether a loss reads several labels per example; None if the labels decide."""
        several = losses.multi_label(loss)
        return None if self._custom_step and not several else several

    def check(self, labels: Any, outputs: OutputsShape) -> None:
        """Raise LabelError if labels do not fit the loss and outputs of a shape; remember both."""
        self._outputs_shape = outputs.shape
        if self.class_weight is not None and len(outputs.shape or ()) == 3 and getattr(labels, "ndim", 0) == 2:
            raise LabelError(
                f"class_weight reads labels of shape {labels.shape} as one row of targets per example, and outputs of "
                f"shape {outputs.shape} need a class number for each position. Expected labels (examples, positions, "
                "1). Pass y[..., None]."
            )
        shape = dict(outputs.by_output) or outputs.shape
        if not self._custom_step and shape is not None:
            losses.check(self.loss, labels, shape)
            if self.class_weight is not None and outputs.shape and losses.takes_labels(self.loss):
                _check_classes(self.class_weight, outputs.shape[-1] if len(outputs.shape) > 1 else 1)
        self.note(labels)

    def note(self, labels: Any) -> None:
        """Learn from labels whether the model is multi-label, if its loss does not decide it.

        Raises:
          LabelError: for several labels per example, if a metric reads one.
        """
        if labels is None or losses.multi_label(self.loss):
            return
        by_output = self.loss if isinstance(self.loss, ByOutput) else None
        if by_output is not None and not self._custom_step:
            labels = by_output.labels_by_name(labels)
        if is_by_output(labels):
            loss_of = {} if by_output is None else by_output.loss_of
            for name, own in entries_by_name(labels).items():
                metrics = self._one_label_metrics.get(name)
                if metrics and not losses.multi_label(loss_of.get(name)):
                    with about(name):
                        _several_labels(own, metrics)
        # Class numbers of pixels can look like several labels.
        elif len(self._outputs_shape or ()) <= 2 and _several_labels(labels, self._one_label_metrics.get("", [])):
            self.multi_label = True
        elif self.multi_label is None and isinstance(self.loss, losses.BinaryCrossEntropy):
            self.multi_label = False

    def is_multi_label(self, outputs: str) -> bool:
        """Return True if these outputs of `predict` are those of a multi-label model.

        Raises:
          CompileError: if that decides the outputs and is unknown.
        """
        single = 1 in (self._num_classes, *(self._outputs_shape or ())[1:][-1:])
        undecided = self.multi_label is None and isinstance(self.loss, losses.BinaryCrossEntropy) and not single
        if undecided and outputs in ("probabilities", "labels"):
            raise CompileError(
                f"outputs={outputs!r} of a model with the loss BinaryCrossEntropy() depend on its labels, and it has "
                "seen none. Expected the loss to say which: compile with BinaryCrossEntropy(multi_label=True) for "
                "several labels per example, or multi_label=False for one class."
            )
        return bool(self.multi_label)

    def check_class_weight(self, class_weight: Any) -> None:
        """Raise DataError for the weight of a class outside the known number of outputs of the network."""
        _check_classes(class_weight, None if self._num_classes == 1 else self._num_classes)  # 1: or a regression

    def check_weights(self, sample_weight: Any) -> None:
        """Raise DataError before the first step for weights by output that the losses of the model do not take."""
        if is_container(sample_weight):
            taken = self.loss.loss_of if isinstance(self.loss, ByOutput) and not self._custom_step else None
            weights = check_weights(sample_weight, taken)
            if taken is not None and weights.keys() == taken.keys() and not any(map(np.any, weights.values())):
                raise DataError(
                    f"All sample weights of the outputs {list(weights)} are 0. Expected at least one weight above 0. "
                    "Leave sample_weight out to weigh all examples equally."
                )

    def warn_of_one_hot(self, labels: Any) -> None:
        """Warn if all labels name one class, and the loss reads several."""
        if losses.multi_label(self.loss) and losses.one_hot(labels):
            _log.warning(
                "Every row of the labels has exactly one label, and the loss reads several: probabilities are a "
                "sigmoid each, and accuracy is the share of single labels. If an image has one class, use "
                "loss='cross_entropy'."
            )

    # --- names of the classes -----------------------------------------------------------------------------------------

    def set_names(self, value: Sequence[str] | None, *, trained: bool) -> None:
        """Set the names of the classes.

        Raises:
          DataError: for another number of names than of classes; after training, for the same names in another order.
        """
        classes = self._num_classes
        names = None if value is None else check_class_names(value, classes if classes != 1 else None)
        before = self.names
        if trained and names and before and names != before and sorted(names) == sorted(before):
            raise DataError(
                f"model.class_names got {names}, and the network was trained with the same names as {before}. Expected "
                "the order of the training. If that was wrong, set model.class_names = None first."
            )
        self.names, self._names_were_set = names, names is not None

    def check_head(self) -> None:
        """Forget the names of the training data if the network has another number of outputs now.

        Raises:
          DataError: if names that the user set do not fit.
        """
        num_classes = self._num_classes
        if self.names is None or num_classes in (None, 1, len(self.names)):
            return
        if self._names_were_set:
            check_class_names(self.names, num_classes)
        _log.warning(
            "The network has %d outputs now, so the names of the %d classes that it was trained on are forgotten.",
            num_classes, len(self.names),
        )  # fmt: skip
        self.names = None

    def names_after_training(self, data: Batches) -> list[str] | None:
        """Return the names of the classes once the model was trained on the data: its own, or those of the data.

        Raises:
          DataError: if both have names, and they differ.
        """
        names, own = classes_of(data), self.names
        if names is None or own is not None:
            if names is not None and list(names) != own:
                raise DataError(
                    f"The training data have the classes {names}, and model.class_names is {own}. Expected the same "
                    "names in the same order. Order the classes of the data like those of the model, as in "
                    "resfit.data.folder(path, classes=model.class_names); or set model.class_names = None to take "
                    "those of the data."
                )
            return own
        if self._num_classes not in (None, 1, len(names)):
            _log.warning(
                "The training data have %d classes, and the network has %d outputs, so the class names are not kept.",
                len(names), self._num_classes,
            )  # fmt: skip
            return None
        return list(names)


def _check_classes(class_weight: Any, outputs: int | None) -> None:
    highest = max(check_class_weight(class_weight), default=0)
    classes = None if outputs is None else max(outputs, 2)  # a single output has the classes 0 and 1
    if classes is not None and highest >= classes:
        raise DataError(
            f"class_weight names the class {highest}, and the network has {outputs} outputs. Expected class numbers "
            f"from 0 to {classes - 1}."
        )


def _several_labels(labels: Any, one_label_metrics: list[str]) -> bool:
    """Return True if an example has several labels; raise if metrics read one."""
    row = losses.multi_hot_row(labels)
    if row is not None and one_label_metrics:
        raise LabelError(
            f"Row {row} of the labels has {int((np.asarray(labels)[row] == 1).sum())} labels, and the metrics "
            f"{one_label_metrics} read one label per example. Expected metrics for several: use "
            "loss='binary_cross_entropy', BinaryCrossEntropy(multi_label=True), or, with a custom loss, "
            "'binary_accuracy' and classes such as resfit.metrics.f1(num_classes, multi_label=True)."
        )
    return row is not None
