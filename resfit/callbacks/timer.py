"""A callback that stops training after a given time."""

import datetime
import logging
import time
from typing import Any

from resfit.callbacks.base import Callback
from resfit.callbacks.logs import Logs
from resfit.errors import CallbackError

_log = logging.getLogger("resfit")


class Timer(Callback):
    """A callback that stops training after the first batch that ends later than `duration` after the beginning.

    A resumed run continues with the remaining time. With several processes, the first process whose time is up stops
    all of them after the same batch.

    Args:
      duration: the training time.

    Attributes:
      elapsed: seconds of training so far, including those before a resume.

    Raises:
      CallbackError: for a duration that is not positive.

    Example:
      >>> import datetime
      >>> callback = Timer(datetime.timedelta(hours=7, minutes=45))
    """

    def __init__(self, duration: datetime.timedelta) -> None:
        if not isinstance(duration, datetime.timedelta) or duration <= datetime.timedelta():
            raise CallbackError(f"Expected duration to be a positive datetime.timedelta, got {duration!r}.")
        self._duration = duration
        self._start: float | None = None
        self._before = 0.0

    @property
    def elapsed(self) -> float:
        return self._before + (0.0 if self._start is None else time.monotonic() - self._start)

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._before = 0.0
        self._start = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        if not self.model.stop_training and self.elapsed >= self._duration.total_seconds():
            _log.warning("Timer: training stops after %s, at batch %d of the epoch.", self._duration, batch)
            self.model.stop_training = True

    def on_train_end(self, logs: Logs | None = None) -> None:
        self._before, self._start = self.elapsed, None

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # A rollback loads an earlier state during a run: the time since then is used up too.
        self._before = max(state["elapsed"], self.elapsed)
        if self._start is not None:
            self._start = time.monotonic()
