"""What training does between two batches, and between two epochs."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from resfit.data.batches import Batches
from resfit.data.epochs import Epochs
from resfit.errors import ResumeError
from resfit.trainer.boundary import Boundary
from resfit.trainer.callback_list import CallbackList
from resfit.trainer.checkpoint.manager import Keeper, Progress
from resfit.trainer.interrupts import Interrupt
from resfit.trainer.multihost import Processes
from resfit.trainer.state import Leaves


class Validation(NamedTuple):
    """When and on what to validate inside `fit`.

    Attributes:
      data: the examples.
      steps: how many batches; None for all.
      due: epoch, counted from zero -> whether to validate after it.
      every: validate after every so many steps of this fit instead; None for `due`.
      stopped: whether somebody asked to stop this validation.
      weights: -> "raw" or "ema", asked before each validation.
    """

    data: Batches
    steps: int | None
    due: Callable[[int], bool]
    every: int | None
    stopped: Callable[[], bool]
    weights: Callable[[], str]


class Trains(Protocol):
    """What `Run` needs of the loop.

    Attributes:
      sums: metric sums since the epoch began.
      processes: of the run.
    """

    sums: Leaves
    processes: Processes

    def validate(
        self, validation: Validation, callbacks: CallbackList, interrupt: Interrupt, save: Callable[[], None]
    ) -> dict[str, Any]: ...


class Run:
    """What training does between two batches, and between two epochs: stop, validate, save, go back.

    Args:
      loop: what trains.
      data: of the run.
      callbacks: to fire.
      validation: None for none.
      keeper: saves the run; None where no callback says where.
      interrupt: what a signal asks for.
      stopped: whether somebody asked to stop.
    """

    def __init__(
        self,
        loop: Trains,
        data: Epochs,
        callbacks: CallbackList,
        validation: Validation | None,
        keeper: Keeper | None,
        interrupt: Interrupt,
        stopped: Callable[[], bool],
    ) -> None:
        self._loop, self._data, self._callbacks, self._validation = loop, data, callbacks, validation
        self._keeper, self._interrupt, self._stopped = keeper, interrupt, stopped

    def restore(self) -> None:
        """Puts back what was found in the folder."""
        if self._keeper is not None:
            self._loop.sums = self._keeper.restore(self._data, self._callbacks)

    def check_interrupt(self) -> None:
        """End the run where a signal arrived before its first step; nothing is new, so nothing is saved."""
        Boundary(self._loop.processes, self._interrupt, self._stopped)()

    def rolls_back(self) -> bool:
        """Whether a callback asked to go back to the last good checkpoint."""
        return self._keeper is not None and self._keeper.rollback is not None

    def rolled_back(self) -> Progress:
        """Where the run goes on from its last good checkpoint."""
        if self._keeper is None:
            raise ResumeError("There is no checkpoint to go back to. fit needs a Checkpoint callback.")
        with self._loop.processes.failing_together():
            here = self._keeper.roll_back()
        if not here.batch:
            self.restore()
        return here

    def after_batch(self, here: Progress) -> Progress:
        """Where the run is after a batch, its hooks, and what was due then."""
        every = None if self._validation is None else self._validation.every
        here = here._replace(batch=here.batch + 1, steps=here.steps + 1)
        here = here._replace(validating=every is not None and here.steps % every == 0)
        here = self._boundary(here)
        if here.validating:
            here = self._boundary(self.validated(here))
        self._save_if_wanted(here)
        return here

    def validated(self, here: Progress) -> Progress:
        """After the validation that is due."""
        if self._validation is None:
            return here
        # A validation that is interrupted begins anew, so callbacks go back to where they were before it.
        states = self._callbacks.state_dicts() if self._keeper is not None else None
        values = self._loop.validate(
            self._validation, self._callbacks, self._interrupt, lambda: self._save(here, states=states)
        )
        return here._replace(validated=values, validating=False)

    def after_epoch(self, here: Progress, logs: dict[str, Any]) -> Progress:
        """Where the run is after an epoch and its hooks."""
        here = self._boundary(Progress(here.epoch + 1, steps=here.steps, logs=logs))
        self._save_if_wanted(here)
        return here

    def _boundary(self, here: Progress) -> Progress:
        save = lambda: self._save(here._replace(stopping=self._stopped()))  # noqa: E731
        stop = Boundary(self._loop.processes, self._interrupt, self._stopped, save)()
        return here._replace(stopping=stop)

    def _save_if_wanted(self, here: Progress) -> None:
        if self._keeper is not None and self._keeper.wanted:
            self._save(here)

    def _save(self, here: Progress, states: dict[str, Any] | None = None) -> None:
        if self._keeper is not None:
            self._keeper.save(here, self._loop.sums, self._data, self._callbacks, states)
