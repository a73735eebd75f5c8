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
    """Whether somebody asked to stop."""

    requested = False


@contextlib.contextmanager
def at_batch_boundaries() -> Iterator[Interrupt]:
    """Holds back the first SIGINT, noted in what it yields. Outside the main thread, which gets no signals, a no-op."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    previous = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True
        _log.warning("Interrupted: stopping after this batch. Once more to stop at once.")

    signal.signal(signal.SIGINT, handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)
