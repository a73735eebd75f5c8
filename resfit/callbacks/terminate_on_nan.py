"""A callback that stops training when a loss is not finite."""

import logging
from typing import Any

from resfit.callbacks.bad_losses import BadLoss, BadLosses
from resfit.callbacks.base import Callback
from resfit.callbacks.logs import Logs
from resfit.errors import CallbackError, NonFiniteLossError

_log = logging.getLogger("resfit")


class TerminateOnNaN(Callback):
    """A callback that stops training when a batch's own loss is NaN or infinite, and names the first such batch.

    The callback reads eight losses in one transfer once they are eight steps old. The device never waits, and training
    stops at most sixteen steps after the bad one. The epoch's validation and on_epoch_end still run, as in Keras. Keras
    checks the running mean; this callback checks the batch's own loss.

    Args:
      raise_error: raise `NonFiniteLossError` instead of stopping training.
      locate: also find the first value of that step that was not finite: an input, a parameter or a layer's output.
        Every step then waits for the device and keeps a copy of the state before it, so use this to debug a known
        failure.

    Attributes:
      bad_place: with locate, a description of the first value that was not finite.
      bad_batch: (epoch, batch) of the first loss that was not finite, both counted from zero, or None.

    Raises:
      NonFiniteLossError: in `fit`, if raise_error is True.

    Example:
      >>> callback = TerminateOnNaN()
    """

    def __init__(self, raise_error: bool = False, locate: bool = False) -> None:
        for name, value in (("raise_error", raise_error), ("locate", locate)):
            if not isinstance(value, bool):
                raise CallbackError(f"Expected {name} to be True or False, got {value!r}.")
        self.raise_error = raise_error
        self._locate = locate
        self._losses = BadLosses()
        self.bad_batch: tuple[int, int] | None = None
        self.bad_place: str | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.bad_batch = self.bad_place = None
        if self._locate:
            self.model.keep_last_step = True

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self._locate:
            self.model.keep_last_step = False

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._losses.begin(epoch)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._stop(self._losses.add(batch, logs, wait=self._locate))

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self._stop(self._losses.rest())

    def _stop(self, bad: BadLoss | None) -> None:
        if bad is None or self.bad_batch is not None:
            return
        self.bad_batch = (bad.epoch, bad.batch)
        if self._locate:
            self.bad_place = self.model.first_non_finite()
        message = (
            f"{bad.described(self.bad_place)} Lower the learning rate, clip the gradients, or look for NaN in that "
            "batch's inputs."
        )
        if self.raise_error:
            raise NonFiniteLossError(message)
        _log.warning("TerminateOnNaN: training stops. %s", message)
        self.model.stop_training = True

    def state_dict(self) -> dict[str, Any]:
        return {"bad_batch": self.bad_batch, "bad_place": self.bad_place, "unread": self._losses.unread()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bad_batch = None if state["bad_batch"] is None else (state["bad_batch"][0], state["bad_batch"][1])
        self.bad_place = state["bad_place"]
        self._losses.resume(state["unread"])
