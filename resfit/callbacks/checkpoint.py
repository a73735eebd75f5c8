"""A callback that saves the run during training, so that `fit(resume=True)` can resume it."""

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
    """A callback that saves the whole run: variables, optimizer, averages, metric sums, data position, callbacks.

    `fit(..., callbacks=[Checkpoint(folder)], resume=True)` resumes from the newest checkpoint, at the same batch. The
    resumed run ends bit for bit where the uninterrupted run would have ended. The loop saves in the background, after
    all hooks of a batch or epoch. A checkpoint is written whole or not at all. Ctrl-C and SIGTERM save before they stop
    the run. To save only the model, use `ModelCheckpoint` or `Model.save`.

    Args:
      directory: the folder of the checkpoints. It is created if it does not exist. Only one run can use it at a time.
      every: "epoch", a number of steps, or a datetime.timedelta. The last two also save at the end of every epoch.
      keep: the number of newest checkpoints to keep, at least 1. A finished run keeps at least 2: one of its end, and
        one of its last epoch, from which a run of more epochs can resume.
      best: the name of a value, such as "val_loss". The checkpoint of the epoch with the best value is kept too.
      mode: "min", "max", or "auto" to infer the direction from the name.

    Raises:
      CallbackError: for an unusable keep or every.

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
            self.model.control.request_checkpoint()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        value = None if self._monitor is None else self._monitor.value(logs, "Checkpoint")
        improves = self._monitor is not None and value is not None and self._monitor.improves(value)
        self.model.control.request_checkpoint(best=improves)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "best": None if self._monitor is None else self._monitor.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]
        if self._monitor is not None:
            self._monitor.best = state["best"]
