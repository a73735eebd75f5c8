"""Stops training when a step's loss is no number any more."""

import collections
import logging
import math
from typing import cast

from resfit.engine.hooks import Callback, LazyLogs, Logs, batch_losses
from resfit.errors import CallbackError, NonFiniteLossError

_log = logging.getLogger("resfit")

# The loop never runs further ahead of the device than this, so a loss that is as many steps old is there to be read.
_LAG = 8


class TerminateOnNaN(Callback):
    """Stops training when a batch's own loss is NaN or infinite, and says which batch was the first.

    The losses of eight steps are read in one transfer once they are eight steps old, so the device never waits and
    training stops at most sixteen steps after the bad one. The epoch's validation and on_epoch_end still run, as in
    Keras; unlike there, the loss looked at is the batch's own, not the running mean.

    Args:
      raise_error: raise `NonFiniteLossError` instead of stopping quietly.
      locate: also find the first thing that was not finite in that step: the inputs, a parameter, a layer's output.
        Every step then waits for the device and keeps a copy of the state before it, so this is for a fault that was
        seen before.

    Attributes:
      bad_place: with locate, what was the first to be not finite, in words.
      bad_batch: (epoch, batch) of the first loss that was not finite, both counted from zero; None if there was none.

    Raises:
      NonFiniteLossError: from `fit`, if raise_error is set.

    Example:
      >>> callback = TerminateOnNaN()
    """

    def __init__(self, raise_error: bool = False, locate: bool = False) -> None:
        for name, value in (("raise_error", raise_error), ("locate", locate)):
            if not isinstance(value, bool):
                raise CallbackError(f"Expected {name} to be True or False, got {value!r}.")
        self._raise = raise_error
        self._locate = locate
        self._epoch = 0
        self._unread: collections.deque[tuple[int, LazyLogs]] = collections.deque()
        self.bad_batch: tuple[int, int] | None = None
        self.bad_place: str | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._unread.clear()
        self.bad_batch = self.bad_place = None
        if self._locate:
            self.model.keep_last_step = True

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self._locate:
            self.model.keep_last_step = False

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._unread.append((batch, cast(LazyLogs, logs)))
        if self._locate:
            self._check(1)
        elif len(self._unread) > 2 * _LAG:
            self._check(_LAG)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self._check(len(self._unread))

    def on_exception(self, exception: BaseException) -> None:
        self._unread.clear()

    def _check(self, count: int) -> None:
        entries = [self._unread.popleft() for _ in range(count)]
        losses = batch_losses([logs for _, logs in entries])
        bad = [(batch, loss) for (batch, _), loss in zip(entries, losses, strict=True) if not math.isfinite(loss)]
        if not bad or self.bad_batch is not None:
            return
        batch, loss = bad[0]
        self.bad_batch = (self._epoch, batch)
        if self._locate:
            self.bad_place = self.model.first_non_finite()
        where = "" if self.bad_place is None else f" The first thing that is not finite: {self.bad_place}."
        message = (
            f"The loss of batch {batch} in epoch {self._epoch} is {loss}.{where} Expected a finite number. Lower the "
            "learning rate, clip the gradients, or look for NaN in that batch's inputs."
        )
        if self._raise:
            raise NonFiniteLossError(message)
        _log.warning("TerminateOnNaN: training stops. %s", message)
        self.model.stop_training = True
