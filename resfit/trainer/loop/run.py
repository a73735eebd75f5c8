"""One call of `fit`: epochs, validation, checkpoints and rollbacks around the training steps."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from resfit._utils.stopped import Stopped
from resfit.augment.resize import Resize
from resfit.callbacks.logs import LazyLogs, as_plain
from resfit.data.batches import Batches
from resfit.data.epochs import Epochs
from resfit.errors import DataError, ResumeError, StepFailed
from resfit.trainer.checkpoint.manager import CheckpointManager
from resfit.trainer.checkpoint.saved_run import Progress
from resfit.trainer.context import LabelCheck, RunContext
from resfit.trainer.learning_rate import LearningRate
from resfit.trainer.loop.boundary import Boundary
from resfit.trainer.loop.callback_list import CallbackList
from resfit.trainer.loop.evaluator import Evaluator
from resfit.trainer.loop.interrupts import Interrupt, report
from resfit.trainer.loop.trainer import Trainer


class Validation(NamedTuple):
    """When and on what to validate inside `fit`.

    Attributes:
      data: the examples.
      steps: the number of batches; None for all.
      due: takes an epoch, counted from zero; returns True if a validation follows it.
      every: the number of steps of this fit between two validations; None to use `due`.
      stopped: returns True if a stop of this validation was requested.
      weights: returns "raw" or "ema"; called before each validation.
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
      rate: the learning rate of the model.
      data: the training data, in epochs.
      callbacks: to fire.
      validation: None to skip validation.
      manager: saves the run; None without a `Checkpoint` callback.
      interrupt: the signals that end the run.
      stopped: returns True if a stop was requested.
      resize: takes an epoch, returns the resizing of its training images, or None.
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
    resize: Callable[[int], Resize | None]
    logs: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._here = Progress(0)
        save = lambda: self._save(self._here._replace(stopping=self.stopped()))  # noqa: E731
        self._stops = Boundary(self.context.processes, self.interrupt, self.stopped, save)

    def train(self, epochs: range, start: Progress | None) -> Progress:
        """Train. At the end, and after any exception, the module holds the values of the last completed step.

        Args:
          epochs: their numbers, as callbacks see them.
          start: the progress of the saved run to resume, or None.

        Returns:
          The progress at the end.
        """
        state = self.context.state
        check = self.context.label_check(self.data.batches)
        here = self._here = Progress(epochs.start) if start is None else start
        self.logs = dict(here.logs)
        try:
            with self.context.processes.failing_together():
                self.callbacks.fire("on_train_begin", {})
                if start is None:
                    state.take_from_module()
                state.between_steps = True
                if start is not None and not start.batch:
                    self._restore()
                # A signal before the first step ends the run without a save, because nothing has changed.
                Boundary(self.context.processes, self.interrupt, self.stopped)()
                while here.epoch < epochs.stop and not (here.stopping and not here.batch):
                    here = self._epoch(here, check)
                state.take_from_module()  # the last assignments of callbacks
        except KeyboardInterrupt as exception:
            self._explain(exception)
            if self.interrupt.at_once:
                raise  # the second Ctrl-C: the traceback shows where the loop hung
            raise Stopped from exception
        except BaseException as exception:
            self._explain(exception)
            raise
        finally:
            state.publish()
            state.between_steps = False
            self.callbacks.fire("on_train_end", self.logs)
        return here

    def _explain(self, exception: BaseException) -> None:
        """Fire on_exception; recover a state that a failed step consumed, and raise StepFailed in that case."""
        lost = self.context.state.recover()
        self.callbacks.fire("on_exception", exception)
        if (
            isinstance(exception, KeyboardInterrupt)
            and self.interrupt.reported
            and self.context.processes.shard[0] == 0
        ):
            folder = None if self.manager is None else self.manager.folder
            report(self._here.epoch, self._here.batch, folder, at_once=self.interrupt.at_once, lost=lost)
        if lost and isinstance(exception, Exception):
            raise StepFailed(
                f"A step failed on the device and destroyed the state: {exception}. The module returns to the values "
                "it last held (at the start of this fit, or when model.module was last read). The optimizer, the "
                "averages and the step counter start again, as after compile."
                + ("" if self.manager is None else " Call fit with resume=True to resume from the newest checkpoint.")
            ) from exception

    def _epoch(self, here: Progress, check: LabelCheck) -> Progress:
        """Train one epoch, or its remaining batches."""
        self.callbacks.fire("on_epoch_begin", here.epoch, {})
        last: LazyLogs | None = None
        if here.batch:
            self._restore()
        else:
            self.trainer.begin_epoch()
        if here.validating:
            here = self._validated(here)
        if not here.stopping:
            resize = self.resize(here.epoch)
            executions = self.trainer.batches(self.data, here.batch, self.callbacks, check, self.manager, resize)
            for steps, last in executions:  # noqa: B007
                here = self._after_steps(here, steps)
                if here.stopping or self._rolls_back:
                    break
        if not self._rolls_back:
            here = self._after_epoch(here, self.trainer.logs() if last is None else last)
        return self._rolled_back() if self._rolls_back else here

    def _after_steps(self, here: Progress, count: int) -> Progress:
        """Validate, save and stop if these are due after the steps of an execution and their hooks."""
        every = None if self.validation is None else self.validation.every
        steps = here.steps + count
        due = every is not None and steps // every > here.steps // every
        here = self._boundary(here._replace(batch=here.batch + count, steps=steps, validating=due))
        if here.validating:
            here = self._boundary(self._validated(here))
        self._save_if_wanted(here)
        return here

    def _after_epoch(self, here: Progress, last: LazyLogs) -> Progress:
        """Validate if due, fire on_epoch_end, and save and stop if these are due."""
        if not here.batch:
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
        """Validate, and add the values to the progress."""
        validation = self.validation
        if validation is None:
            return here
        # An interrupted validation starts again on resume, so the states of callbacks are those from before it.
        states = self.callbacks.state_dicts() if self.manager is not None else None
        boundary = Boundary(
            self.context.processes, self.interrupt, validation.stopped, lambda: self._save(here, states=states)
        )
        values = self.evaluator.evaluate_until(
            boundary, validation.data, validation.steps, self.callbacks, validation.weights()
        )
        return here._replace(
            validated={f"val_{name}": as_plain(value) for name, value in values.items()}, validating=False
        )

    def _restore(self) -> None:
        """Restore the checkpoint that was found, and its metric sums."""
        if self.manager is not None:
            self.trainer.sums = self.manager.restore(self.data, self.callbacks)

    @property
    def _rolls_back(self) -> bool:
        """True if a callback requested a rollback to the last good checkpoint."""
        return self.manager is not None and self.manager.rollback is not None

    def _rolled_back(self) -> Progress:
        """Return to the last checkpoint in which all values are finite."""
        if self.manager is None:
            raise ResumeError(
                "A rollback was requested without a folder of checkpoints. Pass a Checkpoint callback to fit."
            )
        with self.context.processes.failing_together():
            here = self.manager.roll_back()
        if not here.batch:
            self._restore()
        return here

    def _boundary(self, here: Progress) -> Progress:
        """Set `stopping` if a stop was requested; save first if a signal ends the run."""
        self._here = here
        stop = self._stops()
        return here if stop == here.stopping else here._replace(stopping=stop)

    def _save_if_wanted(self, here: Progress) -> None:
        if self.manager is not None and self.manager.wanted:
            self._save(here)

    def _save(self, here: Progress, states: dict[str, Any] | None = None) -> None:
        if self.manager is not None:
            self.manager.save(here, self.trainer.sums, self.data, self.callbacks, states)
