"""Signals that stop a run at a batch boundary.

Between the call of a step and its return neither the old state nor the new one exists. An interrupt at this moment
would lose the run. So the first signal only sets a flag, which the loop reads after the batch. A second signal stops at
once.

The handlers are for this process only. A forked process, such as a worker of a loader, has no loop that reads the flag.
It gets the earlier handlers back, and ends as it would without `fit`.
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
_followed = threading.local()


class Interrupt:
    """The request of a signal to stop.

    Attributes:
      requested: True after a signal.
      terminated: True after SIGTERM.
      at_once: True after a second signal.
      reported: False if a run that stops does not log where it stopped, because its owner does.
    """

    requested = terminated = at_once = False
    reported = True

    def exception(self) -> BaseException:
        """Return what to raise: a KeyboardInterrupt, or after SIGTERM the exit with code 143 that a shell expects."""
        return SystemExit(128 + signal.SIGTERM) if self.terminated else KeyboardInterrupt()


@contextlib.contextmanager
def at_batch_boundaries(terminating: bool = False) -> Iterator[Interrupt]:
    """Hold back the first SIGINT inside the block, and note it in the yielded value. A no-op outside the main thread.

    A thread inside `following` gets the interrupt that it follows.

    The end of the block raises the exception of the signal, if nothing raised it before.

    Args:
      terminating: hold back SIGTERM too, by which clusters announce that they will take a machine away.
    """
    if threading.current_thread() is not threading.main_thread():
        yield getattr(_followed, "interrupt", None) or Interrupt()
        return
    interrupt = Interrupt()

    def handle(number: int, frame: FrameType | None) -> None:
        interrupt.terminated = number == signal.SIGTERM
        if interrupt.requested:
            interrupt.at_once = True
            raise interrupt.exception()
        interrupt.requested = True
        _log.warning("Interrupted: stopping after this batch. Interrupt again to stop at once.")

    wanted = (signal.SIGINT, signal.SIGTERM) if terminating else (signal.SIGINT,)
    # A handler that was not installed from Python cannot be put back.
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


@contextlib.contextmanager
def following(interrupt: Interrupt) -> Iterator[None]:
    """Let the runs of this thread stop, inside the block, when the interrupt of another thread requests it."""
    _followed.interrupt = interrupt
    try:
        yield
    finally:
        del _followed.interrupt


def report(epoch: int, batch: int, folder: os.PathLike[str] | None, *, at_once: bool, lost: bool) -> None:
    """Log what an interrupted fit kept and how to resume, in three lines.

    Args:
      epoch: the epoch of the next step, from zero.
      batch: the number of its batches that were trained.
      folder: of the checkpoints, or None.
      at_once: True after a second signal: steps may have been trained since `batch` was counted.
      lost: True if a step was interrupted and its state is lost.
    """
    place = f"in epoch {epoch + 1}, after {batch} of its batches" if batch else f"before epoch {epoch + 1}"
    place = f"at once, in epoch {epoch + 1}" if at_once else place
    kept = "the values that it had when fit began" if lost else "the result of the last finished step"
    saved = (
        "Nothing was saved: call model.save(path), or pass a resfit.callbacks.Checkpoint to fit to be able to resume."
        if folder is None
        else f"Checkpoints are in {str(folder)!r}: the same fit with resume=True resumes from the newest one."
    )
    _log.warning(
        "Interrupted %s. The model holds %s.\n%s\nTo train on in this process, call fit with initial_epoch=%d.",
        place,
        kept,
        saved,
        epoch,
    )


def report_members(epoch: int, folder: os.PathLike[str] | None, *, at_once: bool) -> None:
    """Log what the interrupted fit of an ensemble kept and how to resume, in three lines.

    Args:
      epoch: the first epoch that not all members have finished, from zero.
      folder: that holds the folders of the checkpoints, or None.
      at_once: True after a second signal: a member may still be in a step.
    """
    saved = (
        "Nothing was saved: call ensemble.save(folder), or pass a resfit.callbacks.Checkpoint to fit to be able to "
        "resume."
        if folder is None
        else f"Checkpoints are in {str(folder)!r}: the same fit with resume=True resumes every member."
    )
    _log.warning(
        "Interrupted%s in epoch %d. Each member holds the result of its last finished step.\n%s\n"
        "To train on in this process, call fit with initial_epoch=%d.",
        " at once," if at_once else "",
        epoch + 1,
        saved,
        epoch,
    )


def _restore(handlers: dict[int, _Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _before_fork() -> None:
    # A signal to the child waits until the child has its own handlers: nothing reads the flag there.
    held = (signal.SIGINT, signal.SIGTERM) if _replaced else ()
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, held)


def _after_fork_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    while _replaced:
        _restore(_replaced.pop())
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
