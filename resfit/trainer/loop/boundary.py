"""The check between two batches: the one place where a loop can stop."""

from collections.abc import Callable

from resfit.trainer.devices.multihost import Processes
from resfit.trainer.loop.interrupts import Interrupt


class Boundary:
    """A check between two batches, by which all processes stop at the same batch.

    Args:
      processes: of the run.
      interrupt: the signals that this process received.
      stopped: returns True if a callback of this process asked to stop.
      save: called before an interrupt ends the loop.
    """

    def __init__(
        self,
        processes: Processes,
        interrupt: Interrupt,
        stopped: Callable[[], bool],
        save: Callable[[], None] | None = None,
    ) -> None:
        self._processes, self._interrupt, self._stopped, self._save = processes, interrupt, stopped, save

    def __call__(self) -> bool:
        """Return True if the loop stops.

        Raises:
          KeyboardInterrupt: if a process received Ctrl-C.
          SystemExit: with 143, if a process received SIGTERM.
        """
        interrupt = self._interrupt
        interrupted, terminated, stop = self._processes.any(interrupt.requested, interrupt.terminated, self._stopped())
        if interrupted:
            # Never set to False: a signal may have arrived in this process while it waited for the others.
            interrupt.terminated |= terminated
            if self._save is not None:
                self._save()
            with self._processes.raising_together():
                raise interrupt.exception()
        return stop
