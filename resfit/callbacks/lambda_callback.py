"""A callback made of functions."""

from collections.abc import Callable
from typing import Any

from resfit._utils.suggest import did_you_mean
from resfit.callbacks.base import HOOKS, Callback
from resfit.errors import CallbackError

Hook = Callable[..., Any] | None


class LambdaCallback(Callback):
    """A callback made of functions, as in Keras. Each function takes the arguments of its hook, without `self`.

    Args:
      on_epoch_begin: a function (epoch, logs), or None, as for the other hooks.
      on_epoch_end: a function (epoch, logs).
      on_train_begin: a function (logs).
      on_train_end: a function (logs).
      on_train_batch_begin: a function (batch, logs).
      on_train_batch_end: a function (batch, logs).
      hooks: functions of the other hooks of `Callback`, as keyword arguments.

    Raises:
      CallbackError: for an unknown hook, or a value that is not a function.

    Example:
      >>> losses = []
      >>> callback = LambdaCallback(on_epoch_end=lambda epoch, logs: losses.append(logs["loss"]))
      >>> callback.on_epoch_end(0, {"loss": 2.3})
      >>> losses
      [2.3]
    """

    def __init__(
        self,
        on_epoch_begin: Hook = None,
        on_epoch_end: Hook = None,
        on_train_begin: Hook = None,
        on_train_end: Hook = None,
        on_train_batch_begin: Hook = None,
        on_train_batch_end: Hook = None,
        **hooks: Hook,
    ) -> None:
        hooks |= {
            "on_epoch_begin": on_epoch_begin,
            "on_epoch_end": on_epoch_end,
            "on_train_begin": on_train_begin,
            "on_train_end": on_train_end,
            "on_train_batch_begin": on_train_batch_begin,
            "on_train_batch_end": on_train_batch_end,
        }
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
