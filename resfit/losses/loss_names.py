"""The `loss` argument of `Model.compile`, and the check of its labels."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resfit._utils import foreign
from resfit._utils.keywords import checked
from resfit._utils.suggest import did_you_mean
from resfit._utils.words import same_word, use
from resfit.errors import CompileError, LossError
from resfit.losses import regression
from resfit.losses.binary import BinaryCrossEntropy, binary_cross_entropy
from resfit.losses.by_output import ByOutput, about, is_by_output, of_outputs
from resfit.losses.cross_entropy import CrossEntropy, cross_entropy
from resfit.losses.focal import Focal
from resfit.losses.labels import Loss, check_each_output, check_labels
from resfit.losses.order import outputs_first
from resfit.losses.pixels import RowLoss, over_pixels, representatives

LossArgument = str | Loss | Mapping[str, Any] | Sequence[Any]

_BY_NAME: dict[str, Loss] = {
    "auto": cross_entropy,
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "focal": Focal(),
    # Keras's names. The meaning is the same because every network of resfit returns logits.
    "sparse_categorical_crossentropy": cross_entropy,
    "categorical_crossentropy": cross_entropy,
    "binary_crossentropy": binary_cross_entropy,
    **regression.ALL,
}


@checked("loss arguments")
def get(loss: LossArgument, loss_weights: Any = None) -> Loss:
    """Return the loss with a name, or a loss function with its arguments in the order (outputs, labels).

    Args:
      loss: a name or a function; or a dict or list of such, one for each output of the module.
      loss_weights: the weights of the losses by output in their total.

    Raises:
      CompileError: for an unknown name, an object that is not a function, a loss of another library, or a function
        with ambiguous parameter names (see `order.outputs_first`).
    """
    if is_by_output(loss):
        return of_outputs(loss, loss_weights, get)
    if loss_weights is not None:
        raise CompileError(
            f"compile got loss_weights={loss_weights!r} and one loss. Expected losses by output, such as "
            "loss={'a': 'auto', 'b': 'mse'}. For a single loss multiply it in a custom function, or leave loss_weights "
            "out."
        )
    if isinstance(loss, str):
        name = same_word(loss, _BY_NAME)
        if name not in _BY_NAME:
            expected = f"Expected a function of (logits, labels), or one of {list(_BY_NAME)}."
            raise CompileError(f"Unknown loss {loss!r}. {use(loss, 'loss') or expected + did_you_mean(loss, _BY_NAME)}")
        return _BY_NAME[name]
    foreign.refuse(loss, "loss", CompileError)
    if isinstance(loss, type):
        raise CompileError(f"loss is the class {loss.__name__}. Expected an object of it: loss={loss.__name__}(...).")
    if not callable(loss):
        raise CompileError(f"Expected loss to be a name or a function of (logits, labels), got {type(loss).__name__}.")
    return outputs_first(loss, "loss")


@checked("loss arguments")
def takes_labels(loss: Loss | None) -> bool:
    """Return True for a loss of resfit that reads class numbers, targets that sum to one, or one binary label.

    Example:
      >>> takes_labels(CrossEntropy(label_smoothing=0.1)), takes_labels(regression.mean_squared_error)
      (True, False)
    """
    return loss is cross_entropy or isinstance(loss, CrossEntropy | Focal)


@checked("loss arguments")
def multi_label(loss: Loss | None) -> bool | None:
    """Return True if a loss of resfit reads every output as an independent label, and False if it does not.

    The result is None if the labels decide: for `BinaryCrossEntropy()`, which reads both, and for custom losses.

    Example:
      >>> multi_label(binary_cross_entropy), multi_label(cross_entropy), multi_label(BinaryCrossEntropy())
      (True, False, None)
    """
    if isinstance(loss, BinaryCrossEntropy):
        return loss.multi_label
    if loss is binary_cross_entropy:
        return True
    one = takes_labels(loss) or any(loss is named for named in regression.ALL.values() if named is not regression.hinge)
    return False if one else None


@checked("loss arguments")
def check(loss: Loss | None, labels: Any, logits_shape: Any) -> None:
    """Raise if values of labels are invalid for a loss of resfit. Labels of a custom loss are not checked.

    Args:
      loss: the loss that reads the labels.
      labels: all labels, or those of one batch.
      logits_shape: the shape of one batch of logits; for a loss by output the shapes of all outputs by name.

    Raises:
      LabelError: see `check_labels`, `check_each_output`.

    Example:
      >>> check(BinaryCrossEntropy(), np.array([[1, 1, 0]]), (1, 3))
    """
    if isinstance(loss, ByOutput):
        labels = loss.labels_by_name(labels)
        for part in loss.parts:
            with about(part.name):
                check(part.loss, labels[part.name], logits_shape[part.name])
        return
    one = takes_labels(loss) or (isinstance(loss, BinaryCrossEntropy) and loss.multi_label is False)
    if not one and loss is not binary_cross_entropy and not isinstance(loss, BinaryCrossEntropy):
        return
    labels = np.asarray(labels)
    if len(logits_shape) > 2 and labels.ndim > 1:
        labels = representatives(labels, logits_shape, ignore_index(loss))
    (check_labels if one else check_each_output)(labels, logits_shape)


@checked("loss arguments")
def ignore_index(loss: Loss | None) -> int | None:
    """Return the label of pixels that a loss ignores, its attribute `ignore_index`; None if it ignores none.

    Example:
      >>> ignore_index(CrossEntropy(ignore_index=255)), ignore_index(cross_entropy)
      (255, None)
    """
    index: int | None = getattr(loss, "ignore_index", None)
    return index


@checked("loss arguments")
def weighted(loss: Loss, outputs: Any, labels: Any, weight: Any) -> Any:
    """Return the loss of each example, (batch,), under the weight of each of its pixels; see `over_pixels`.

    For a loss by output, weights are by the name of the output, and an output without weights is not weighted.

    Raises:
      LossError: for a custom loss, which averages over the pixels itself.
      LabelError: if the weights do not fit the outputs.
    """
    if isinstance(loss, ByOutput):
        parts = (
            part._replace(loss=functools.partial(weighted, part.loss, weight=weight[part.name]))
            if part.name in weight
            else part
            for part in loss.parts
        )
        return dataclasses.replace(loss, parts=tuple(parts))(outputs, labels)
    of_rows = loss.of_rows if isinstance(loss, RowLoss) else loss if loss in _BY_NAME.values() else None
    if of_rows is None:
        raise LossError(
            f"Got a sample_weight for each pixel, of shape {weight.shape}, and a custom loss, which returns one value "
            "per example. Expected a loss of resfit, such as 'cross_entropy', or one weight per example."
        )
    return over_pixels(of_rows, outputs, labels, ignore_index(loss), weight)
