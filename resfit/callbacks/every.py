"""Intervals: the end of every epoch, a number of steps, or an amount of time."""

import datetime
import time

from resfit._utils.checks import is_int
from resfit.errors import CallbackError


class Every:
    """An interval, which decides at which steps an action is due.

    Args:
      every: a number of steps, a datetime.timedelta, or "epoch" for no step: epochs have a separate hook.
      who: the name of the callback, for the error message.

    Raises:
      CallbackError: for any other value, or an interval that is not positive.

    Example:
      >>> every = Every(2, "Example")
      >>> [every.due(step) for step in (1, 2, 3, 4)]
      [False, True, False, True]
    """

    def __init__(self, every: str | int | datetime.timedelta, who: str) -> None:
        if isinstance(every, datetime.timedelta):
            known = every > datetime.timedelta()
        else:
            known = is_int(every, 1) or every == "epoch"
        if not known:
            raise CallbackError(
                f"{who} got every={every!r}. Expected 'epoch', a positive number of steps, or a positive "
                "datetime.timedelta."
            )
        self._every = int(every) if is_int(every) else every
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Return True if the action is due after a step.

        Args:
          step: the number of training steps done, this one included.
        """
        if isinstance(self._every, int):
            return step % self._every == 0
        if isinstance(self._every, datetime.timedelta):
            now = time.monotonic()
            if now - self._last < self._every.total_seconds():
                return False
            self._last = now
            return True
        return False
