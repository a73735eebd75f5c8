"""Ctrl-C at a batch boundary.

Between handing the state to a step and receiving the new one there is a moment in which neither exists. An interrupt
there would lose the run, so the first one only sets a flag, which the loop reads after the batch. A second one stops at
once.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_log = logging.getLogger("resfit")


class Interrupt:
    """Whether somebody asked to stop, and how."""

    requested = False
    terminated = False

    def exception(self) -> BaseException:
        """What ends the run: a KeyboardInterrupt, or after SIGTERM the exit that a shell expects."""
        return SystemExit(128 + signal.SIGTERM) if self.terminated else KeyboardInterrupt()


@contextlib.contextmanager
def at_batch_boundaries(terminating: bool = False) -> Iterator[Interrupt]:
    """Holds back the first SIGINT, noted in what it yields. Outside the main thread, which gets no signals, a no-op.

    Args:
      terminating: hold back SIGTERM likewise, which is how clusters announce that a machine will be taken away.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def handle(number: int, frame: FrameType | None) -> None:
        interrupt.terminated = number == signal.SIGTERM
        if interrupt.requested:
            raise interrupt.exception()
        interrupt.requested = True
        _log.warning("Interrupted: stopping after this batch. Once more to stop at once.")

    held = (signal.SIGINT, signal.SIGTERM) if terminating else (signal.SIGINT,)
    previous = {number: signal.signal(number, handle) for number in held}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
