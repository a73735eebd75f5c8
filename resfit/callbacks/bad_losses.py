"""Detection of batches with a loss that is not finite; the device never waits for it."""

import collections
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

from resfit.callbacks.logs import LazyLogs, Logs, batch_losses

# The loop is never more steps ahead of the device than this, so a loss of that age can be read without waiting.
_LAG = 8


class BadLoss(NamedTuple):
    """A batch's own loss that is NaN or infinite. Epoch and batch are counted from zero."""

    epoch: int
    batch: int
    loss: float

    def described(self, place: str | None) -> str:
        """Return a sentence about the loss; `place` is the first part of that step that was not finite, if known."""
        where = "" if place is None else f" The first value that is not finite: {place}."
        return f"The loss of batch {self.batch} in epoch {self.epoch} is {self.loss}.{where} Expected a finite number."


class BadLosses:
    """A reader of losses: it reads eight losses in one transfer once they are eight steps old."""

    def __init__(self) -> None:
        self._epoch = 0
        self._unread: collections.deque[tuple[int, LazyLogs | float]] = collections.deque()  # a number after a resume

    def begin(self, epoch: int) -> None:
        """Begin an epoch and drop unread losses."""
        self._epoch = epoch
        self._unread.clear()

    def add(self, batch: int, logs: Logs | None, *, wait: bool = False) -> BadLoss | None:
        """Add a batch's log, and return the first bad loss among those read now; `wait` reads all at once."""
        self._unread.append((batch, cast(LazyLogs, logs)))
        if wait:
            return self.rest()
        return self._first(_LAG) if len(self._unread) > 2 * _LAG else None

    def rest(self) -> BadLoss | None:
        """Return the first bad loss among the unread ones. Waits for the device."""
        return self._first(len(self._unread))

    def unread(self) -> list[tuple[int, float]]:
        """Return (batch, loss) of the unread losses, for a checkpoint. Waits for the device."""
        return _read(self._unread)

    def resume(self, unread: Sequence[tuple[int, float]]) -> None:
        """Restore the result of `unread`; call it after `begin`."""
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
