"""Goes back to the last good checkpoint when training diverges."""

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
    """Goes back to the last checkpoint in which all is finite when a batch's loss is not, with a lower learning rate.

    `fit` needs a `Checkpoint` callback beside it. Everything goes back: parameters, statistics, optimizer, position in
    the data, `History`, callbacks; only the learning rate is another, so that the run goes the same way more slowly.
    Losses are looked at as by `TerminateOnNaN`, at most sixteen steps late. The steps up to the one that failed are
    then kept and looked at one by one, so that a second failure names the layer.

    Args:
      factor: new learning rate = present one * factor; a schedule's rates are all multiplied. 1 leaves it, which helps
        where the fault was the machine's.
      times: how often to go back in a run before `NonFiniteLossError` is raised.

    Attributes:
      count: how often it went back.

    Raises:
      CallbackError: for a factor outside (0, 1], or times below 1; at the beginning of `fit` without a `Checkpoint`, or
        if there is no learning rate to lower.

    Example:
      >>> from resfit.callbacks import Checkpoint
      >>> callbacks = [Checkpoint("runs/a", every=500), RollbackOnNaN(factor=0.5, times=3)]
    """

    def __init__(self, factor: float = 0.5, times: int = 3) -> None:
        if not 0 < factor <= 1:
            raise CallbackError(f"Expected 0 < factor <= 1, to lower the learning rate, got {factor}.")
        self._factor, self._times = factor, positive_int("times", times, CallbackError)
        self._losses = BadLosses()
        self._failed: tuple[int, int] | None = None  # where it last went back from: looked at closely until past it
        self._epoch = 0
        self._began = False
        self.count = 0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        if not self.model.saves_checkpoints:
            raise CallbackError(
                "RollbackOnNaN goes back to a checkpoint, and this fit saves none. Pass a Checkpoint beside it: "
                "callbacks=[resfit.callbacks.Checkpoint(folder), RollbackOnNaN()]."
            )
        if self._factor < 1:
            require_adjustable(self.model, "RollbackOnNaN")
        self.count, self._failed, self._began = 0, None, False

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._epoch = epoch
        self._losses.begin(epoch)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        if not self._began:  # the first step of the run: there must be something to go back to
            self._began = True
            self.model.request_checkpoint()
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
                f"{message} The run went back to its last good checkpoint {self.count} times. Lower the learning rate, "
                "clip the gradients, or look for NaN in that batch's inputs."
            )
        self.count += 1
        self._failed = (bad.epoch, bad.batch)
        _log.warning(
            "RollbackOnNaN: %s The run goes back to its last good checkpoint (%d of %d times), the learning rate times "
            "%g.", message, self.count, self._times, self._factor,
        )  # fmt: skip
        self.model.keep_last_step = True
        self.model.request_rollback(bad=self._failed, learning_rate_factor=self._factor)

    def state_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "failed": self._failed,
            "began": self._began,
            "unread": self._losses.unread(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = max(self.count, state["count"])  # going back does not undo that it went back
        if self._failed is None and state["failed"] is not None:
            self._failed = (state["failed"][0], state["failed"][1])
        self._began = state["began"]
        self._losses.resume(state["unread"])
