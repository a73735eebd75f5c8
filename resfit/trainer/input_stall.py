"""How long the device had nothing to do because the next batch was not there yet."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax

T = TypeVar("T")


class Waiting:
    """Watches one epoch's batches come in, until the last one.

    The host runs ahead of the device, so waiting for a batch costs nothing while earlier steps are still running. Only
    a wait at whose end the last step was done counts: in full, so the figure is an upper bound.

    Attributes:
      seconds: of waiting that counted.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._begin = time.perf_counter()
        self._end: float | None = None
        self._last: Any = None

    def over(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, timed."""
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
        """Notes one of the outputs of the step that was just handed to the device."""
        self._last = result

    @property
    def share(self) -> float:
        """Of the time since this was made, or until the last batch."""
        end = time.perf_counter() if self._end is None else self._end
        return self.seconds / max(end - self._begin, 1e-9)
