"""Checks of the model's learning rate for callbacks that set, scale or show it."""

from resfit.callbacks.base import TrainedModel
from resfit.errors import CallbackError, CompileError


def require_settable(model: TrainedModel, who: str) -> None:
    """Raise if a callback cannot set the learning rate of the model.

    Raises:
      CallbackError: if a schedule sets the learning rate, or the optimizer does not expose it.
    """
    try:
        model.learning_rate = model.learning_rate
    except CompileError as error:
        raise CallbackError(
            f"{who} sets the learning rate, and the learning rate of this model cannot be set. {error} Or omit {who}."
        ) from error


def require_adjustable(model: TrainedModel, who: str) -> None:
    """Raise if a callback cannot scale the learning rate of the model, which can be a number or a schedule.

    Raises:
      CallbackError: if the optimizer does not expose its learning rate.
    """
    try:
        _ = model.learning_rate
    except CompileError as error:
        raise CallbackError(f"{who} lowers the learning rate. {error} Or pass {who}(factor=1).") from error


def current(model: TrainedModel) -> float | None:
    """Return the learning rate of the model, or None if its optimizer does not expose one."""
    try:
        return model.learning_rate
    except CompileError:
        return None
