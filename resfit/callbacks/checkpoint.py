"""Saves the run while it trains, so that `fit(resume=True)` can go on from there."""

import datetime
import pathlib
from typing import Any

from resfit._utils.checks import positive_int
from resfit._utils.paths import expand_user
from resfit.callbacks.base import Callback
from resfit.callbacks.every import Every
from resfit.callbacks.logs import Logs
from resfit.callbacks.monitor import Monitor
from resfit.errors import CallbackError


class Checkpoint(Callback):
    """Saves the whole run: parameters, statistics, optimizer, averages, metric sums, position in the data, callbacks.

    `fit(..., callbacks=[Checkpoint(folder)], resume=True)` goes on from the newest checkpoint, at the very batch, and
    ends where the uninterrupted run would have ended, bit for bit. The loop saves after all hooks of a batch or epoch,
    in the background; a checkpoint appears whole or not at all. Ctrl-C and SIGTERM save before they stop the run. A
    file of the model alone, to use or pass on, is what `ModelCheckpoint` and `Model.save` write.

    Args:
      directory: made if it is not there. One run has it for itself.
      every: "epoch", a number of steps, or a datetime.timedelta; with the latter two, at the end of epochs as well.
      keep: how many of the newest checkpoints to keep, at least 1. A finished run keeps at least 2: its end, and that
        of its last epoch, from which more epochs can go on.
      best: the name of a value, such as "val_loss", whose best epoch's checkpoint is kept too; None for none.
      mode: "min", "max", or "auto" to tell by the name.

    Raises:
      CallbackError: for a keep or every that cannot be.

    Example:
      >>> callback = Checkpoint("runs/a", every=datetime.timedelta(minutes=10), keep=2, best="val_accuracy")
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        every: str | int | datetime.timedelta = "epoch",
        keep: int = 2,
        best: str | None = None,
        mode: str = "auto",
    ) -> None:
        self.directory = pathlib.Path(expand_user(directory))
        self.keep = positive_int("keep", keep, CallbackError, "a positive number of checkpoints")
        self._every = Every(every, "Checkpoint")
        self._monitor = None if best is None else Monitor(best, mode)
        self._steps = 0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._steps = 0

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._steps += 1
        if self._every.due(self._steps):
            self.model.request_checkpoint()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        value = None if self._monitor is None else self._monitor.value(logs, "Checkpoint")
        improves = self._monitor is not None and value is not None and self._monitor.improves(value)
        self.model.request_checkpoint(best=improves)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "best": None if self._monitor is None else self._monitor.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]
        if self._monitor is not None:
            self._monitor.best = state["best"]
