"""A callback that returns to the last good checkpoint when training diverges."""

import logging
from typing import Any

from resfit._utils.checks import positive_int
from resfit.callbacks.bad_losses import BadLoss, BadLosses
from resfit.callbacks.base import Callback
from resfit.callbacks.learning_rate_checks import require_adjustable
from resfit.callbacks.logs import Logs
from resfit.errors import CallbackError, NonFiniteLossError

_log = logging.getLogger("resfit")


class RollbackOnNaN(Callback):
    """A callback that returns to the last finite checkpoint when a loss is not finite, and lowers the learning rate.

    `fit` also needs a `Checkpoint` callback. The whole run returns to the checkpoint: variables, optimizer, data
    position, `History`, callbacks. Only the learning rate changes, so the run takes the same path in smaller steps.
    Losses are checked as in `TerminateOnNaN`, at most sixteen steps late. After a rollback, every step up to the one
    that failed is checked at once, so that a second failure names the layer.

    Args:
      factor: the factor that multiplies the learning rate, or every value of a schedule. 1 keeps the learning rate,
        which helps after a hardware fault.
      times: the number of rollbacks in a run. The next failure raises `NonFiniteLossError`.

    Attributes:
      count: the number of rollbacks so far.

    Raises:
      CallbackError: for a factor outside (0, 1], or times below 1; at the beginning of `fit`, if there is no
        `Checkpoint`, or if the learning rate cannot be lowered.

    Example:
      >>> from resfit.callbacks import Checkpoint
      >>> callbacks = [Checkpoint("runs/a", every=500), RollbackOnNaN(factor=0.5, times=3)]
    """

    def __init__(self, factor: float = 0.5, times: int = 3) -> None:
        if not 0 < factor <= 1:
            raise CallbackError(f"Expected 0 < factor <= 1, to lower the learning rate, got {factor}.")
        self._factor, self._times = factor, positive_int("times", times, CallbackError)
        self._losses = BadLosses()
        self._failed: tuple[int, int] | None = None  # the last failure; steps up to it are checked at once
        self._epoch = 0
        self._began = False
        self.count = 0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        if not self.model.control.saves_checkpoints:
            raise CallbackError(
                "RollbackOnNaN needs checkpoints, and this fit saves none. Expected a Checkpoint callback too: "
                "callbacks=[resfit.callbacks.Checkpoint(folder), RollbackOnNaN()]."
            )
        if self._factor < 1:
            require_adjustable(self.model, "RollbackOnNaN")
        self.count, self._failed, self._began = 0, None, False

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._epoch = epoch
        self._losses.begin(epoch)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        if not self._began:  # the first step of the run: save a checkpoint to return to
            self._began = True
            self.model.control.request_checkpoint()
        closely = self._failed is not None and (self._epoch, batch) <= self._failed
        bad = self._losses.add(batch, logs, wait=closely)
        self._go_back(bad)
        if bad is None:
            self.model.keep_last_step = self._failed is not None and (self._epoch, batch) < self._failed

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self._go_back(self._losses.rest())

    def on_train_end(self, logs: Logs | None = None) -> None:
        self.model.keep_last_step = False

    def _go_back(self, bad: BadLoss | None) -> None:
        if bad is None:
            return
        seen = self._failed is not None and (bad.epoch, bad.batch) <= self._failed
        message = bad.described(self.model.first_non_finite() if seen and self.model.keep_last_step else None)
        if self.count == self._times:
            raise NonFiniteLossError(
                f"{message} The run returned to its last good checkpoint {self.count} times. Lower the learning rate, "
                "clip the gradients, or look for NaN in that batch's inputs."
            )
        self.count += 1
        self._failed = (bad.epoch, bad.batch)
        _log.warning(
            "RollbackOnNaN: %s The run returns to its last good checkpoint (%d of %d times) with the learning rate "
            "times %g.", message, self.count, self._times, self._factor,
        )  # fmt: skip
        self.model.keep_last_step = True
        self.model.control.request_rollback(bad=self._failed, learning_rate_factor=self._factor)

    def state_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "failed": self._failed,
            "began": self._began,
            "unread": self._losses.unread(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = max(self.count, state["count"])  # a rollback does not undo the count of rollbacks
        if self._failed is None and state["failed"] is not None:
            self._failed = (state["failed"][0], state["failed"][1])
        self._began = state["began"]
        self._losses.resume(state["unread"])
