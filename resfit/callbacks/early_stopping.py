"""A callback that stops training when a value no longer improves."""

import logging
from typing import Any

from resfit._utils.checks import int_from
from resfit.callbacks.base import Callback
from resfit.callbacks.logs import Logs
from resfit.callbacks.monitor import Monitor, measured_weights
from resfit.errors import CallbackError

_log = logging.getLogger("resfit")


class EarlyStopping(Callback):
    """A callback that stops training when a value has not improved for `patience` epochs, as in Keras.

    Args:
      monitor: the name of the value, such as "val_loss".
      min_delta: the smallest change that counts as an improvement; the change must be larger.
      patience: the number of epochs without improvement after which training stops. 0 and 1 both stop at the first.
      verbose: 1 logs when training stops and when weights are restored.
      mode: "min", "max", or "auto" to infer the direction from the name.
      baseline: a value that training must beat within `patience` epochs. An epoch that improves never stops training.
      restore_best_weights: restore the variables of the best epoch at the end of training, also after an exception. The
        value alone decides which epoch is best, even if no epoch beats the baseline. The module then holds the weights
        that were measured: the averages, if validation used averaged weights (`SwapEMAWeights`). The model's averages
        are restored to that epoch too.
      start_from_epoch: the first epoch to judge.

    Each argument is also an attribute with its name, as in Keras.

    Attributes:
      stopped_epoch: the epoch that ended training, or 0.
      best_epoch: the epoch with the best value.
      best: the best value so far, or None.
      best_weights: with restore_best_weights, the result of `model.get_weights` in the best epoch; else None.
      wait: the number of epochs since the last improvement.

    Example:
      >>> callback = EarlyStopping(monitor="val_accuracy", patience=3, restore_best_weights=True)
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0,
        patience: int = 0,
        verbose: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        self.patience = int_from(0, "patience", patience, CallbackError, "a number of epochs, 0 or more")
        self._monitor = Monitor(monitor, mode, min_delta)
        self.min_delta, self.mode = min_delta, mode
        self.verbose = verbose
        self.baseline = baseline
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch
        self._reset()

    def _reset(self) -> None:
        self._monitor.best = None
        self.best_weights: Any = None  # those that were measured
        self._averages: Any = None  # the averages of that epoch, if those are not `best_weights`
        self.wait = 0
        self.stopped_epoch = 0
        self.best_epoch = 0

    @property
    def best(self) -> float | None:
        """The best value so far."""
        return self._monitor.best

    @property
    def monitor(self) -> str:
        """The name of the value."""
        return self._monitor.name

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._reset()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        value = self._monitor.value(logs, "EarlyStopping")
        if value is None or epoch < self.start_from_epoch:
            return
        self.wait += 1
        if self._monitor.improves(value):
            self.best_epoch = epoch
            if self.restore_best_weights:
                self._keep()
            if self.baseline is None or self._monitor.beats(value, self.baseline):
                self.wait = 0
            return
        if self.wait >= max(self.patience, 1) and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True
            if self.verbose:
                _log.warning("EarlyStopping: stopped after epoch %d; the best was epoch %d.", epoch, self.best_epoch)

    def _keep(self) -> None:
        measured = measured_weights(self.model, [self._monitor.name])
        self.best_weights = self.model.get_weights(measured)
        self._averages = self.model.get_weights("ema") if self.model.keeps_averages and measured == "raw" else None

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self.best_weights is not None:
            self.model.set_weights(self.best_weights, self._averages)
            if self.model.history is not None:
                self.model.history.weights_epoch = self.best_epoch
            if self.verbose:
                _log.warning("EarlyStopping: restored the variables of epoch %d.", self.best_epoch)

    def state_dict(self) -> dict[str, Any]:
        return {
            **self._monitor.state_dict(),
            "wait": self.wait,
            "best_epoch": self.best_epoch,
            "stopped_epoch": self.stopped_epoch,
            "weights": self.best_weights,
            "averages": self._averages,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._monitor.load_state_dict(state)
        self.wait, self.best_weights = state["wait"], state["weights"]
        self._averages = state.get("averages")  # earlier versions did not save averages
        self.best_epoch, self.stopped_epoch = state["best_epoch"], state["stopped_epoch"]
