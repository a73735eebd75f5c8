"""A stopwatch that can be paused."""

import time


class Stopwatch:
    """A stopwatch that stands still while it is held. Holds can nest.

    Example:
      >>> watch = Stopwatch()
      >>> watch.start()
      >>> watch.hold()  # the time from here to `release` does not count
      >>> watch.release()
      >>> 0 <= watch.seconds < 1
      True
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Restart from zero."""
        self._counted = 0.0
        self._holds = 0
        self._since = time.perf_counter()

    def hold(self) -> None:
        """Stop the clock."""
        if self._holds == 0:
            self._counted += time.perf_counter() - self._since
        self._holds += 1

    def release(self) -> None:
        """Resume the clock after the last release."""
        self._holds -= 1
        if self._holds == 0:
            self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """The seconds counted so far."""
        return self._counted if self._holds else self._counted + time.perf_counter() - self._since
