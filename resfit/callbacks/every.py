"""How often: at epoch ends only, every so many steps, or every so much time."""

import datetime
import time

from resfit._utils.checks import is_int
from resfit.errors import CallbackError


class Every:
    """Says at which steps something is due.

    Args:
      every: "epoch": at no step, epochs have their own hook; a number of steps; or a datetime.timedelta.
      who: the callback, for the error.

    Raises:
      CallbackError: for anything else, or an interval that is not positive.

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
        """Whether the time has come.

        Args:
          step: training steps done, this one included.
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
