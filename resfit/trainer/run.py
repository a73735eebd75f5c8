"""One call of `fit`: epochs, validation, checkpoints and rollbacks around the training steps."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from resfit.callbacks.logs import LazyLogs
from resfit.data.batches import Batches
from resfit.data.epochs import Epochs
from resfit.errors import DataError, ResumeError, StepFailed
from resfit.trainer.boundary import Boundary
from resfit.trainer.callback_list import CallbackList
from resfit.trainer.checkpoint.manager import CheckpointManager
from resfit.trainer.checkpoint.saved_run import Progress
from resfit.trainer.context import LabelCheck, RunContext
from resfit.trainer.evaluator import Evaluator
from resfit.trainer.interrupts import Interrupt
from resfit.trainer.learning_rate import LearningRate
from resfit.trainer.trainer import Trainer


class Validation(NamedTuple):
    """When and on what to validate inside `fit`.

    Attributes:
      data: the examples.
      steps: the number of batches; None for all.
      due: epoch, counted from zero -> True if a validation follows it.
      every: validate after every so many steps of this fit instead; None for `due`.
      stopped: returns True if somebody asked to stop this validation.
      weights: returns "raw" or "ema"; asked before each validation.
    """

    data: Batches
    steps: int | None
    due: Callable[[int], bool]
    every: int | None
    stopped: Callable[[], bool]
    weights: Callable[[], str]


@dataclasses.dataclass
class Run:
    """One `fit`: the objects that it works with, and the log of its last epoch.

    Attributes:
      context: of the model.
      trainer: takes the steps.
      evaluator: validates.
      rate: of the model.
      data: cut into epochs.
      callbacks: to fire.
      validation: None for none.
      manager: saves the run; None if no callback names a folder.
      interrupt: what a signal asks for.
      stopped: returns True if somebody asked to stop.
      logs: of the last epoch, for on_train_end.
    """

    context: RunContext
    trainer: Trainer
    evaluator: Evaluator
    rate: LearningRate
    data: Epochs
    callbacks: CallbackList
    validation: Validation | None
    manager: CheckpointManager | None
    interrupt: Interrupt
    stopped: Callable[[], bool]
    logs: dict[str, Any] = dataclasses.field(default_factory=dict)

    def train(self, epochs: range, start: Progress | None) -> Progress:
        """Train. However it ends, the user's module holds the values of the last completed step.

        Args:
          epochs: their numbers, as callbacks see them.
          start: where a saved run resumes, or None.

        Returns:
          The progress at the end.
        """
        state = self.context.state
        check = self.context.label_check(self.data.batches)
        here = Progress(epochs.start) if start is None else start
        self.logs = dict(here.logs)
        try:
            with self.context.processes.failing_together():
                self.callbacks.fire("on_train_begin", {})
                if start is None:
                    state.take_from_module()
                state.between_steps = True
                if start is not None and not start.batch:
                    self._restore()
                # A signal before the first step ends the run; nothing is new, so nothing is saved.
                Boundary(self.context.processes, self.interrupt, self.stopped)()
                while here.epoch < epochs.stop and not (here.stopping and not here.batch):
                    here = self._epoch(here, check)
                state.take_from_module()  # what callbacks assigned last, as after every other step
        except BaseException as exception:
            self._explain(exception)
            raise
        finally:
            state.publish()
            state.between_steps = False
            self.callbacks.fire("on_train_end", self.logs)
        return here

    def _explain(self, exception: BaseException) -> None:
        """Recover a state that a failed step took with it, and raise StepFailed in that case."""
        lost = self.context.state.recover()
        self.callbacks.fire("on_exception", exception)
        if lost and isinstance(exception, Exception):
            raise StepFailed(
                f"A step failed on the device and took the state with it: {exception}. The module is back at the "
                "values it last held (of the start of this fit, or of the last time model.module was read); the "
                "optimizer, the averages and the step counter start again, as after compile."
                + ("" if self.manager is None else " fit with resume=True resumes from the newest checkpoint.")
            ) from exception

    def _epoch(self, here: Progress, check: LabelCheck) -> Progress:
        """Train one epoch, or what is left of it."""
        self.callbacks.fire("on_epoch_begin", here.epoch, {})
        last: LazyLogs | None = None
        if here.batch:
            self._restore()
            last = self.trainer.logs()
        else:
            self.trainer.begin_epoch()
        if here.validating:
            here = self._validated(here)
        if not here.stopping:
            for last in self.trainer.batches(self.data, here.batch, self.callbacks, check, self.manager):  # noqa: B007
                here = self._after_batch(here)
                if here.stopping or self._rolls_back:
                    break
        if not self._rolls_back:
            here = self._after_epoch(here, last)
        return self._rolled_back() if self._rolls_back else here

    def _after_batch(self, here: Progress) -> Progress:
        """Validate, save and stop as far as they are due after a batch and its hooks."""
        every = None if self.validation is None else self.validation.every
        here = here._replace(batch=here.batch + 1, steps=here.steps + 1)
        here = here._replace(validating=every is not None and here.steps % every == 0)
        here = self._boundary(here)
        if here.validating:
            here = self._boundary(self._validated(here))
        self._save_if_wanted(here)
        return here

    def _after_epoch(self, here: Progress, last: LazyLogs | None) -> Progress:
        """Validate, fire on_epoch_end, and save and stop as far as they are due."""
        if last is None:
            raise DataError(f"Epoch {here.epoch} had no batches. Expected at least one.")
        self.logs = {**last, **self.data.report}
        self.logs |= self.trainer.skipped_steps(here.epoch, here.batch)
        validation = self.validation
        if validation is not None and not validation.every and validation.due(here.epoch):
            here = self._validated(here)
        self.logs |= here.validated
        self.logs |= self.rate.in_logs()
        self.callbacks.fire("on_epoch_end", here.epoch, self.logs)
        here = self._boundary(Progress(here.epoch + 1, steps=here.steps, logs=self.logs))
        self._save_if_wanted(here)
        return here

    def _validated(self, here: Progress) -> Progress:
        """Run the validation that is due."""
        validation = self.validation
        if validation is None:
            return here
        # A validation that is interrupted begins anew, so callbacks go back to where they were before it.
        states = self.callbacks.state_dicts() if self.manager is not None else None
        boundary = Boundary(
            self.context.processes, self.interrupt, validation.stopped, lambda: self._save(here, states=states)
        )
        values = self.evaluator.evaluate_until(
            boundary, validation.data, validation.steps, self.callbacks, validation.weights()
        )
        return here._replace(validated={f"val_{name}": value for name, value in values.items()}, validating=False)

    def _restore(self) -> None:
        """Restore the state and the metric sums that were found in the folder."""
        if self.manager is not None:
            self.trainer.sums = self.manager.restore(self.data, self.callbacks)

    @property
    def _rolls_back(self) -> bool:
        """True if a callback requested a rollback to the last good checkpoint."""
        return self.manager is not None and self.manager.rollback is not None

    def _rolled_back(self) -> Progress:
        """Go back to the last good checkpoint."""
        if self.manager is None:
            raise ResumeError("There is no checkpoint to go back to. fit needs a Checkpoint callback.")
        with self.context.processes.failing_together():
            here = self.manager.roll_back()
        if not here.batch:
            self._restore()
        return here

    def _boundary(self, here: Progress) -> Progress:
        """Stop if somebody asked to; save first if a signal ends the run."""
        save = lambda: self._save(here._replace(stopping=self.stopped()))  # noqa: E731
        stop = Boundary(self.context.processes, self.interrupt, self.stopped, save)()
        return here._replace(stopping=stop)

    def _save_if_wanted(self, here: Progress) -> None:
        if self.manager is not None and self.manager.wanted:
            self._save(here)

    def _save(self, here: Progress, states: dict[str, Any] | None = None) -> None:
        if self.manager is not None:
            self.manager.save(here, self.trainer.sums, self.data, self.callbacks, states)
