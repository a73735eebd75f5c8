"""Seconds, without those that do not count."""

import time


class Stopwatch:
    """Adds up the time in which nobody holds it. Holds may nest.

    Example:
      >>> watch = Stopwatch()
      >>> watch.start()
      >>> watch.hold()  # what happens now is not counted
      >>> watch.release()
      >>> 0 <= watch.seconds < 1
      True
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """From zero."""
        self._counted = 0.0
        self._holds = 0
        self._since = time.perf_counter()

    def hold(self) -> None:
        """Stops counting."""
        if self._holds == 0:
            self._counted += time.perf_counter() - self._since
        self._holds += 1

    def release(self) -> None:
        """Counts on, once everybody who held it has released it."""
        self._holds -= 1
        if self._holds == 0:
            self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Counted so far."""
        return self._counted if self._holds else self._counted + time.perf_counter() - self._since
