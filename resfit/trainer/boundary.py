"""Between two batches: the one place where a loop may be left."""

from collections.abc import Callable

from resfit.trainer.interrupts import Interrupt
from resfit.trainer.multihost import Processes


class Boundary:
    """Where a loop may be left: between two batches, and by all processes at once.

    Args:
      processes: of the run.
      interrupt: what Ctrl-C asks for.
      stopped: whether somebody in this process asked to stop.
      save: what to do before an interrupt ends the loop.
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
        """Whether to stop.

        Raises:
          KeyboardInterrupt: where a process was interrupted.
          SystemExit: with 143, where one was to be terminated.
        """
        interrupt = self._interrupt
        interrupted, terminated, stop = self._processes.any(interrupt.requested, interrupt.terminated, self._stopped())
        if interrupted:
            # Only added to: a signal may have arrived in this process while it waited for the others.
            interrupt.terminated |= terminated
            if self._save is not None:
                self._save()
            with self._processes.raising_together():
                raise interrupt.exception()
        return stop
