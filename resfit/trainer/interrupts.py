"""Ctrl-C at a batch boundary.

Between handing the state to a step and receiving the new one there is a moment in which neither exists. An interrupt
there would lose the run, so the first one only sets a flag, which the loop reads after the batch. A second one stops at
once.

The handlers are for this process alone. A process that is forked meanwhile, such as a loader's worker, has no loop that
would read the flag: it gets the handlers back that were there before, and ends as it would without `fit`.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_log = logging.getLogger("resfit")

_Handler = Callable[[int, FrameType | None], object] | int | None

_replaced: list[dict[int, _Handler]] = []  # the handlers before each block that is open
_forking = threading.local()


class Interrupt:
    """Whether somebody asked to stop, and how."""

    requested = False
    terminated = False

    def exception(self) -> BaseException:
        """What ends the run: a KeyboardInterrupt, or after SIGTERM the exit that a shell expects."""
        return SystemExit(128 + signal.SIGTERM) if self.terminated else KeyboardInterrupt()


@contextlib.contextmanager
def at_batch_boundaries(terminating: bool = False) -> Iterator[Interrupt]:
    """Hold back the first SIGINT inside the block, noted in the yielded value. A no-op outside the main thread.

    A block that comes to its end all the same raises the exception that the signal asked for.

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

    wanted = (signal.SIGINT, signal.SIGTERM) if terminating else (signal.SIGINT,)
    # A handler that was not installed from Python could not be put back.
    previous: dict[int, _Handler] = {
        number: handler for number in wanted if (handler := signal.getsignal(number)) is not None
    }
    _replaced.append(previous)
    for number in previous:
        signal.signal(number, handle)
    try:
        yield interrupt
    finally:
        _restore(previous)
        if previous in _replaced:  # not in a forked process
            _replaced.remove(previous)
    if interrupt.requested:
        raise interrupt.exception()


def _restore(handlers: dict[int, _Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _before_fork() -> None:
    # A signal to the child waits until the child has its own handlers; the flag would be set in vain.
    held = (signal.SIGINT, signal.SIGTERM) if _replaced else ()
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, held)


def _after_fork_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    while _replaced:
        _restore(_replaced.pop())
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
