"""Threads that train the members of an ensemble, and keep them at the same epoch.

The members run the same compiled program. A step of a small network occupies little more than one core of a CPU, so
several members take their steps at the same time. On an accelerator one program takes the steps of all small members,
see `trainer.devices.together`. Nothing that a member computes depends on the others.
"""

import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from resfit._utils.jax_switches import of_this_thread
from resfit.callbacks import Callback
from resfit.callbacks.logs import Logs
from resfit.trainer.devices.together import Meeting, taking_part
from resfit.trainer.loop.interrupts import Interrupt, following

_log = logging.getLogger("resfit")

_POLL = 0.1  # seconds: a signal sets a flag and wakes nobody up
_GRACE = 1.0  # seconds for the members to stop after a second signal: one that hangs would hang the process


class Pace:
    """The progress of the members.

    Args:
      members: their number.
      at_once: the number of members that can be in an epoch at the same time.
      together: True to take the steps of all members in one program. `at_once` is then the number of members.
      interrupt: stops all members at their next batch once it is requested.
      tell: called with an epoch and {member: its logs}, after all members that still train have finished the epoch.
      begin: called with an epoch once the first member begins it.
      named: returns the name of a member, for the notes of errors and before its messages in the log.
    """

    def __init__(
        self,
        members: int,
        at_once: int,
        together: bool,
        interrupt: Interrupt,
        begin: Callable[[int], None],
        tell: Callable[[int, dict[int, dict[str, Any]]], None],
        named: Callable[[int], str],
    ) -> None:
        self._changed = threading.Condition()
        self._compiling = threading.Lock()
        self._at_once, self._interrupt, self._begin, self._tell, self._named = at_once, interrupt, begin, tell, named
        self._next: list[float | None] = [None] * members  # the epoch that a member trains next; infinite: it is done
        self._logs: list[tuple[int, dict[str, Any]]] = [(-1, {})] * members
        self._running: set[int] = set()
        self._compiles: int | None = None  # the member that compiles
        self._start = 0  # the first epoch, once one has begun
        self._begun: int | None = None  # the last epoch that a member has begun
        self._announced: int | None = None
        self._told: int | None = None  # the last epoch that all have finished
        self._failed: dict[int, BaseException] = {}
        self._names = _Names()
        released = lambda: interrupt.requested  # noqa: E731
        compiles = lambda: self._compiles is not None  # noqa: E731
        self._meeting = Meeting(self._changed, self._stepping, released, compiles) if together else None

    def train(self, fits: Sequence[Callable[[Callback], Any]]) -> None:
        """Run every fit in a thread until all are done.

        Args:
          fits: one function for each member, which takes the callback that keeps the member at the pace.

        Raises:
          BaseException: the one of the first member that failed, or of a signal; the other members stop at their next
            batch. After a second signal, members that hang are left behind.
        """
        self._interrupt.reported = False
        settings = of_this_thread()
        threads = [
            threading.Thread(target=self._run, args=(i, fit, settings), name=f"resfit-member-{i}", daemon=True)
            for i, fit in enumerate(fits)
        ]
        _log.addFilter(self._names)
        for thread in threads:
            thread.start()
        try:
            while self._turn():
                pass
        except BaseException:
            self._interrupt.requested = True
            raise
        finally:
            for thread in threads:
                thread.join(_GRACE / len(threads) if self._interrupt.at_once else None)
            _log.removeFilter(self._names)
        if self._failed:
            number, error = min(self._failed.items())
            error.add_note(f"This happened in {self._named(number)}.")
            raise error
        if self._interrupt.requested:
            raise self._interrupt.exception()

    @property
    def epoch(self) -> int:
        """The first epoch that not all members have finished."""
        return self._start if self._told is None else self._told + 1

    def _run(self, number: int, fit: Callable[[Callback], Any], settings: Callable[[], Any]) -> None:
        self._names.of_threads[threading.get_ident()] = self._named(number)
        try:
            with settings(), following(self._interrupt), taking_part(self._meeting, number):
                fit(Paced(self, number))
        except BaseException as error:  # noqa: BLE001 - the thread of the ensemble raises it
            # After a request to stop, each member ends with the exception of the signal.
            if not (self._interrupt.requested and isinstance(error, KeyboardInterrupt | SystemExit)):
                self._failed[number] = error
                self._interrupt.requested = True
        finally:
            self.compiled(number)
            del self._names.of_threads[threading.get_ident()]  # the next thread can have the same number
            with self._changed:
                self._next[number] = math.inf
                self._running.discard(number)
                self._changed.notify_all()

    def _turn(self) -> bool:
        """Wait for the next change, and tell what it means; return False once all members are done."""
        with self._changed:
            while ((due := self._due()) is None or self._interrupt.requested) and not self._over:
                self._changed.wait(_POLL)
        if due is None or self._interrupt.requested:
            return False
        epoch, finished = due
        if not finished:
            self._announced = epoch
            self._begin(epoch)
            return True
        self._tell(epoch, {i: logs for i, (of, logs) in enumerate(self._logs) if of == epoch})
        with self._changed:
            self._told = epoch
            self._changed.notify_all()
        return True

    def _stepping(self) -> list[int]:
        """Return the members that train and do not wait for the end of an epoch of the ensemble."""
        told = -1 if self._told is None else self._told
        return [i for i, epoch in enumerate(self._next) if epoch != math.inf and self._logs[i][0] <= told]

    @property
    def _over(self) -> bool:
        return all(epoch == math.inf for epoch in self._next)

    def _due(self) -> tuple[int, bool] | None:
        """Return (epoch, True if it is finished) that was not told yet, or None."""
        known = [epoch for epoch in self._next if epoch is not None]
        if len(known) < len(self._next) or self._begun is None:
            return None
        if self._told is None:
            self._told = self._start - 1
        epoch = self._told + 1
        if epoch > self._begun:
            return None
        if epoch != self._announced:
            return epoch, False
        return (epoch, True) if min(known) > epoch else None

    # --- in the thread of a member ------------------------------------------------------------------------------------

    def begin(self, number: int, epoch: int) -> None:
        """Begin an epoch of a member, once it is its turn."""
        with self._changed:
            self._next[number] = epoch
            self._start = epoch if self._begun is None else min(self._start, epoch)
            self._begun = epoch if self._begun is None else max(self._begun, epoch)
            self._changed.notify_all()
            self._wait(lambda: len(self._running - {number}) < self._at_once)
            self._running.add(number)

    def end(self, number: int, epoch: int, logs: dict[str, Any]) -> None:
        """End an epoch of a member; return once the ensemble has ended it."""
        with self._changed:
            self._next[number] = epoch + 1
            self._logs[number] = epoch, logs
            self._running.discard(number)
            self._changed.notify_all()
            self._wait(lambda: self._told is not None and self._told >= epoch)

    def _wait(self, ready: Callable[[], bool]) -> None:
        while not ready() and not self._interrupt.requested:
            self._changed.wait(_POLL)

    def compiles(self, number: int) -> None:
        """Begin a compilation, once no other member compiles: the next member finds the program."""
        self._compiling.acquire()
        self._compiles = number

    def compiled(self, number: int) -> None:
        """End the compilation of a member, if it has begun one."""
        if self._compiles == number:
            self._compiles = None
            self._compiling.release()


class _Names(logging.Filter):
    """Puts the name of a member before each message of its thread. Changes no message of the other threads."""

    def __init__(self) -> None:
        super().__init__()
        self.of_threads: dict[int, str] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if name := self.of_threads.get(threading.get_ident()):
            record.msg = f"{name[0].upper()}{name[1:]}: {record.msg}"
        return True


class Paced(Callback):
    """A callback that keeps a member at the pace of the others."""

    def __init__(self, pace: Pace, number: int) -> None:
        self._pace, self._number = pace, number

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._pace.begin(self._number, epoch)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self._pace.end(self._number, epoch, dict(logs or {}))

    def on_compile_begin(self, what: str) -> None:
        self._pace.compiles(self._number)

    def on_compile_end(self, what: str) -> None:
        self._pace.compiled(self._number)
