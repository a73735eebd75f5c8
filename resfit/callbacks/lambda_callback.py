"""A callback from functions, for what is too short for a class."""

from collections.abc import Callable
from typing import Any

from resfit._utils.suggest import did_you_mean
from resfit.callbacks.base import HOOKS, Callback
from resfit.errors import CallbackError


class LambdaCallback(Callback):
    """Calls functions at hooks. Each takes what the hook takes, without `self`, as in Keras.

    Args:
      hooks: hook name -> function, as keyword arguments; every hook of `Callback` can be given, the base's as well as
        on_exception.

    Raises:
      CallbackError: for a name that is no hook, or a value that is no function.

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
                    f"There is no hook {name!r}. Expected some of {', '.join(HOOKS)}." + did_you_mean(name, HOOKS)
                )
            if function is None:
                continue
            if not callable(function):
                raise CallbackError(f"Expected {name} to be a function, got {function!r}.")
            setattr(self, name, function)
