"""The time in which the device had nothing to do, because the next batch was not there yet."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax

T = TypeVar("T")


class Waiting:
    """A clock for the waits of one epoch for its batches.

    The host runs ahead of the device, so a wait costs nothing while earlier steps still run. A wait counts only if the
    last step was done when it ended. It then counts in full, so the result is an upper bound.

    Attributes:
      seconds: the sum of the waits that counted.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._begin = time.perf_counter()
        self._end: float | None = None
        self._last: Any = None

    def over(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches, and time the wait for each."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                self._end = time.perf_counter()
                return
            if self._last is None or self._last.is_ready():
                self.seconds += time.perf_counter() - start
            yield batch

    def step(self, result: jax.Array) -> None:
        """Note an output of the step that was just handed to the device."""
        self._last = result

    @property
    def share(self) -> float:
        """The share of the waits in the time from the start to now, or to the last batch."""
        end = time.perf_counter() if self._end is None else self._end
        return self.seconds / max(end - self._begin, 1e-9)
