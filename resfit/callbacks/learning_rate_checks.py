"""The learning rate as callbacks see it: some need one that they can set, others show it where there is one."""

from resfit.callbacks.base import TrainedModel
from resfit.errors import CallbackError, CompileError


def require_settable(model: TrainedModel, who: str) -> None:
    """Checks that a callback may set the model's learning rate.

    Raises:
      CallbackError: if a schedule decides it, or the optimizer has none that can be set.
    """
    try:
        model.learning_rate = model.learning_rate
    except CompileError as error:
        raise CallbackError(
            f"{who} sets the learning rate, and this model's cannot be set. {error} Or leave {who} out."
        ) from error


def require_adjustable(model: TrainedModel, who: str) -> None:
    """Checks that a callback may scale the model's learning rate, whether it is a number or a schedule's.

    Raises:
      CallbackError: if the optimizer has none that can be seen.
    """
    try:
        _ = model.learning_rate
    except CompileError as error:
        raise CallbackError(f"{who} lowers the learning rate. {error} Or pass {who}(factor=1).") from error


def current(model: TrainedModel) -> float | None:
    """The learning rate; None for an optimizer that shows none."""
    try:
        return model.learning_rate
    except CompileError:
        return None
