"""Finds batches whose loss is not finite, without making the device wait for it."""

import collections
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

from resfit.callbacks.logs import LazyLogs, Logs, batch_losses

# The loop never runs further ahead of the device than this, so a loss that is as many steps old is there to be read.
_LAG = 8


class BadLoss(NamedTuple):
    """A batch's own loss that is NaN or infinite; epoch and batch are counted from zero."""

    epoch: int
    batch: int
    loss: float

    def described(self, place: str | None) -> str:
        """What happened; place: what was the first in that step to be not finite, where it is known."""
        where = "" if place is None else f" The first thing that is not finite: {place}."
        return f"The loss of batch {self.batch} in epoch {self.epoch} is {self.loss}.{where} Expected a finite number."


class BadLosses:
    """Reads the losses of eight steps in one transfer once they are eight steps old."""

    def __init__(self) -> None:
        self._epoch = 0
        self._unread: collections.deque[tuple[int, LazyLogs | float]] = collections.deque()  # a number after a resume

    def begin(self, epoch: int) -> None:
        """A new epoch; whatever was unread is forgotten."""
        self._epoch = epoch
        self._unread.clear()

    def add(self, batch: int, logs: Logs | None, *, wait: bool = False) -> BadLoss | None:
        """Takes a batch's log. The first bad loss of those that were read, at once if `wait`."""
        self._unread.append((batch, cast(LazyLogs, logs)))
        if wait:
            return self.rest()
        return self._first(_LAG) if len(self._unread) > 2 * _LAG else None

    def rest(self) -> BadLoss | None:
        """The first bad one of all that were not read yet. Waits for the device."""
        return self._first(len(self._unread))

    def unread(self) -> list[tuple[int, float]]:
        """(batch, loss) of those that `add` has not looked at yet, for a run that goes on. Waits for the device."""
        return _read(self._unread)

    def resume(self, unread: Sequence[tuple[int, float]]) -> None:
        """Takes what `unread` gave, after `begin`."""
        self._unread = collections.deque((batch, loss) for batch, loss in unread)

    def _first(self, count: int) -> BadLoss | None:
        for batch, loss in _read([self._unread.popleft() for _ in range(count)]):
            if not math.isfinite(loss):
                return BadLoss(self._epoch, batch, loss)
        return None


def _read(entries: Iterable[tuple[int, LazyLogs | float]]) -> list[tuple[int, float]]:
    entries = list(entries)
    known = iter(batch_losses([logs for _, logs in entries if isinstance(logs, LazyLogs)]))
    return [(batch, next(known) if isinstance(logs, LazyLogs) else logs) for batch, logs in entries]
