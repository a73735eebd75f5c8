"""A callback that lowers the learning rate when a value no longer improves."""

import logging
from typing import Any

import numpy as np

from resfit._utils.checks import int_from
from resfit.callbacks.base import Callback
from resfit.callbacks.learning_rate_checks import require_settable
from resfit.callbacks.logs import Logs
from resfit.callbacks.monitor import Monitor
from resfit.errors import CallbackError

_log = logging.getLogger("resfit")


class ReduceLROnPlateau(Callback):
    """A callback that lowers the learning rate when a value has not improved for `patience` epochs, as in Keras.

    Nothing is recompiled. The logs of an epoch gain `learning_rate`, the learning rate of that epoch.

    Args:
      monitor: the name of the value, such as "val_loss".
      factor: the factor between 0 and 1 that multiplies the learning rate.
      patience: the number of epochs without improvement after which the learning rate falls. 0 and 1 both lower it at
        the first.
      verbose: 1 logs each change.
      mode: "min", "max", or "auto" to infer the direction from the name.
      min_delta: the smallest change that counts as an improvement; the change must be larger.
      cooldown: the number of epochs after a change that do not count against `patience`.
      min_lr: the smallest learning rate.

    Each argument is also an attribute with its name, as in Keras.

    Attributes:
      best: the best value so far, or None.
      wait: the number of epochs since the last improvement or change.
      cooldown_counter: the number of epochs left that do not count against `patience`.

    Raises:
      CallbackError: for a factor outside (0, 1), a patience or cooldown below 0, or an unknown mode; at the beginning
        of `fit`, if the learning rate cannot be set (a schedule sets it, or the optax object does not expose it).

    Example:
      >>> callback = ReduceLROnPlateau(monitor="val_loss", factor=0.2, patience=5, min_lr=1e-4)
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        if not 0 < factor < 1:
            raise CallbackError(f"Expected 0 < factor < 1, to lower the learning rate, got {factor}.")
        self._monitor = Monitor(monitor, mode, min_delta)
        self.min_delta, self.mode = min_delta, mode
        self.factor = factor
        self.patience = int_from(0, "patience", patience, CallbackError, "a number of epochs, 0 or more")
        self.verbose = verbose
        self.cooldown = int_from(0, "cooldown", cooldown, CallbackError, "a number of epochs, 0 or more")
        self.min_lr = min_lr
        self.wait = self.cooldown_counter = 0

    @property
    def best(self) -> float | None:
        """The best value so far."""
        return self._monitor.best

    @property
    def monitor(self) -> str:
        """The name of the value."""
        return self._monitor.name

    def on_train_begin(self, logs: Logs | None = None) -> None:
        require_settable(self.model, "ReduceLROnPlateau")
        self._monitor.best = None
        self.wait = self.cooldown_counter = 0

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        rate = self.model.learning_rate
        if logs is not None:
            logs["learning_rate"] = rate
        value = self._monitor.value(logs, "ReduceLROnPlateau")
        if value is None:
            return
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.wait = 0
        if self._monitor.improves(value):
            self.wait = 0
        elif self.cooldown_counter == 0:
            self.wait += 1
            # The learning rate is float32, in which it never gets below min_lr itself.
            if self.wait >= self.patience and rate > np.float32(self.min_lr):
                self._lower(epoch, rate)

    def _lower(self, epoch: int, rate: float) -> None:
        new = max(rate * self.factor, self.min_lr)
        self.model.learning_rate = new
        self.cooldown_counter = self.cooldown
        self.wait = 0
        if self.verbose:
            _log.warning("ReduceLROnPlateau: learning rate %g after epoch %d.", new, epoch)

    def state_dict(self) -> dict[str, Any]:
        return {**self._monitor.state_dict(), "wait": self.wait, "cooling": self.cooldown_counter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._monitor.load_state_dict(state)
        self.wait, self.cooldown_counter = state["wait"], state["cooling"]
