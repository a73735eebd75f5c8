"""A callback made of functions."""

from collections.abc import Callable
from typing import Any

from resfit._utils.suggest import did_you_mean
from resfit.callbacks.base import HOOKS, Callback
from resfit.errors import CallbackError


class LambdaCallback(Callback):
    """A callback made of functions, as in Keras. Each function takes the arguments of its hook, without `self`.

    Args:
      hooks: functions by the name of their hook, as keyword arguments. Every hook of `Callback` is allowed.

    Raises:
      CallbackError: for an unknown hook, or a value that is not a function.

    Example:
      >>> losses = []
      >>> callback = LambdaCallback(on_epoch_end=lambda epoch, logs: losses.append(logs["loss"]))
      >>> callback.on_epoch_end(0, {"loss": 2.3})
      >>> losses
      [2.3]
    """

    def __init__(self, **hooks: Callable[..., Any] | None) -> None:
        for name, function in hooks.items():
            if name not in HOOKS:
                raise CallbackError(
                    f"LambdaCallback received the unknown hook {name!r}. Expected some of {', '.join(HOOKS)}."
                    + did_you_mean(name, HOOKS)
                )
            if function is None:
                continue
            if not callable(function):
                raise CallbackError(f"Expected {name} to be a function, got {function!r}.")
            setattr(self, name, function)
