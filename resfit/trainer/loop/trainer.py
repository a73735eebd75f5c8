"""Training: runs compiled training steps, one batch after another."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from resfit.augment.pipeline import reads_origin
from resfit.augment.resize import Resize
from resfit.augment.value_range import check_range
from resfit.callbacks.logs import LazyLogs, read
from resfit.data.batches import Batch
from resfit.data.epochs import Epochs
from resfit.errors import ModuleError, NonFiniteLossError
from resfit.trainer.checkpoint.manager import CheckpointManager
from resfit.trainer.context import LabelCheck, RunContext, announce, check_after, check_before, for_step, quiet
from resfit.trainer.device_batch import DeviceBatch
from resfit.trainer.devices.memory import StepMemory, step_memory
from resfit.trainer.devices.multihost import Turn
from resfit.trainer.devices.placement import AXIS, CompiledStep, Throttle, form_of
from resfit.trainer.devices.together import joined
from resfit.trainer.loop.callback_list import CallbackList
from resfit.trainer.loop.evaluator import Evaluator
from resfit.trainer.loop.input_stall import Waiting
from resfit.trainer.non_finite import first_non_finite
from resfit.trainer.several_steps import Taken, filled, gathered, grouped, repeated
from resfit.trainer.state.train_state import Leaves
from resfit.trainer.step import Recipe, train_step

_log = logging.getLogger("resfit")


class Trainer:
    """Takes training steps and keeps their metric sums.

    Args:
      context: of the model.
      recipe: the parts of the steps.
      evaluator: names and reads the metrics.

    Attributes:
      sums: of the metrics, since the epoch began.
      keep_last_step: True to keep a copy of the state before each training step, and its batch. It costs the memory and
        the time of a copy.
    """

    def __init__(self, context: RunContext, recipe: Recipe, evaluator: Evaluator) -> None:
        self._context, self._recipe, self._evaluator = context, recipe, evaluator
        self.sums: Leaves = ()
        self.keep_last_step = False
        self._kept: tuple[Leaves, DeviceBatch] | None = None
        self._checked: set[int] = set()  # the sizes of batches whose program was compared with that of a saved run
        self._waiting = Waiting()
        self._skips = context.state.skips()
        self._skipped_before = 0
        layout = context.state.layout

        def train(leaves: Leaves, sums: Leaves, key: Any, batch: DeviceBatch, axis: str | None = None) -> Any:
            whole = recipe.metrics.unflatten(sums)
            leaves, whole, loss, shape = train_step(layout, recipe, leaves, whole, key, batch, axis)
            return leaves, tuple(jax.tree.leaves(whole)), loss, shape

        def train_part(leaves: Leaves, sums: Leaves, key: Any, batch: DeviceBatch) -> Any:
            return train(leaves, sums, key, batch, AXIS)

        def several(leaves: Leaves, sums: Leaves, key: Any, count: Any, batches: Any, axis: str | None = None) -> Any:
            def one(carry: tuple[Leaves, Leaves], batch: DeviceBatch) -> Any:
                leaves, sums = carry
                leaves, sums, loss, shape = train(leaves, sums, key, batch, axis)
                return (leaves, sums), (sums, loss, shape)

            carry, (each, losses, shape) = repeated(one, (leaves, sums), batches, count)
            return *carry, losses, each, shape

        def several_parts(leaves: Leaves, sums: Leaves, key: Any, count: Any, batches: Any) -> Any:
            return several(leaves, sums, key, count, batches, AXIS)

        mapped = context.placement.replicas > 1
        part = train_part if mapped else None
        self.step = CompiledStep(train, context.placement, donate=True, mapped=part)
        self._several = CompiledStep(several, context.placement, donate=True, mapped=several_parts if mapped else None)
        # For train_on_batch, whose result the user's module shares.
        self._kept_step = CompiledStep(train, context.placement, mapped=part)

    def begin_epoch(self) -> None:
        """Reset the metric sums."""
        self.sums = self._evaluator.empty

    def logs(self) -> LazyLogs:
        """Return the log of the epoch so far."""
        return self._evaluator.logs(self.sums, self._context.state.arrays.step, 0)

    def batches(
        self,
        data: Epochs,
        done: int,
        callbacks: CallbackList,
        check: LabelCheck,
        manager: CheckpointManager | None,
        resize: Resize | None = None,
    ) -> Iterator[tuple[int, LazyLogs | None]]:
        """Train on one epoch; yield after each execution, once its steps are on the device and their hooks have fired.

        Yields the number of steps and the log of the last one, or None in place of the log if no callback reads it.

        Args:
          data: cut into epochs.
          done: batches of the epoch that an earlier run took.
          callbacks: to fire.
          check: of the labels.
          manager: compares the program of the step with that of the saved run, or None.
          resize: of the images, in the step; None for images as they are.
        """
        context, state = self._context, self._context.state
        throttle = Throttle(context.placement.run_ahead)
        waiting = self._waiting = Waiting()
        compiling = announce(callbacks, "train")
        begins, ends = callbacks.listens("on_train_batch_begin"), callbacks.listens("on_train_batch_end")
        self._checked.clear()
        logs: LazyLogs | None = None
        turns = context.processes.turns(data.next(done), lambda batch: for_step(batch, resize))
        i = done
        for group in self._executions(waiting.over(turns)):
            if begins:
                callbacks.fire("on_train_batch_begin", i, {})
            for turn in group:
                self._check_inputs(turn, values=i == done)
            taken = self._take(group, compiling, check, manager)
            waiting.step(taken[-1].loss)
            state.epoch = data.passes
            for turn, (sums, loss, place) in zip(group, taken, strict=True):
                if begins and turn is not group[0]:
                    callbacks.fire("on_train_batch_begin", i, {})
                context.check_inputs(turn, trained=True)
                if ends:
                    logs = self._evaluator.logs(sums, loss, turn.examples, place)
                    callbacks.fire("on_train_batch_end", i, logs)
                i += 1
            throttle.add(taken[-1].loss)
            yield len(group), logs

    def _executions(self, turns: Iterator[Turn]) -> Iterator[list[Turn]]:
        """Yield the turns of each execution; of a step that is kept, one, so that the kept step is the last one."""
        for group in grouped(turns, self._context.steps_per_execution, lambda turn: form_of(turn.placed)):
            yield from [[turn] for turn in group] if self.keep_last_step else [group]

    def _take(
        self, group: list[Turn], compiling: Callable[[bool], None], check: LabelCheck, manager: CheckpointManager | None
    ) -> list[Taken]:
        """Take a step for each turn, in one program where that is fast; return sums and loss of each."""
        if self._context.runs_in_one_program and not self.keep_last_step:
            return self._take_at_once(group, compiling, check, manager)
        state, taken = self._context.state, []
        for turn in group:
            batch = gathered(turn.placed) if self.keep_last_step else turn.placed
            arguments = (state.leaves, self.sums, self._context.key, batch)
            step = self._prepared(self.step, arguments, turn, compiling, check, manager)
            with joined(self.step, step, arguments, compiling) as take, state.lock:
                state.own()
                if self.keep_last_step:
                    self._kept = state.copy(), batch
                leaves, sums, loss, shape = take(state.leaves, *arguments[1:])
                check_after(step, turn, check, shape)
                state.leaves, self.sums = leaves, sums
            taken.append(Taken(self.sums, loss, None))
        return taken

    def _take_at_once(
        self, group: list[Turn], compiling: Callable[[bool], None], check: LabelCheck, manager: CheckpointManager | None
    ) -> list[Taken]:
        state, context = self._context.state, self._context
        batches, count = filled([turn.placed for turn in group], context.steps_per_execution)
        arguments = (state.leaves, self.sums, context.key, count, batches)
        step = self._prepared(self._several, arguments, group[0], compiling, check, manager)
        for turn in group:
            check_before(step, turn, check)
        with state.lock:
            state.own()
            state.leaves, self.sums, losses, sums, _ = step(state.leaves, *arguments[1:])
        return [Taken(sums, losses, i) for i in range(len(group))]

    def _prepared(
        self,
        step: CompiledStep,
        arguments: tuple[Any, ...],
        turn: Turn,
        compiling: Callable[[bool], None],
        check: LabelCheck,
        manager: CheckpointManager | None,
    ) -> Callable[..., Any]:
        """Return the executable for these arguments, compared with that of a saved run, and check the labels."""
        run = step.prepare(arguments, compiling)
        if manager is not None and turn.rows not in self._checked:
            manager.check_program(*step.described(arguments[-1], turn.placed.resize))
            self._checked.add(turn.rows)
        check_before(run, turn, check)
        return run

    def train_batch(self, batch: Batch) -> dict[str, float]:
        """Take one training step on its own; the user's module holds the result.

        Returns:
          The loss and metrics of the batch.
        """
        context, state = self._context, self._context.state
        context.check_trainable("train_on_batch")
        state.take_from_module()
        turn = context.turn(batch)
        self._check_inputs(turn, values=True)
        arguments = (self._evaluator.empty, context.key, turn.placed)
        step = self._kept_step.prepare((state.leaves, *arguments), quiet)
        check = LabelCheck(context.learned.check_labels)
        check_before(step, turn, check)
        with state.lock:
            state.take_from_module()  # another thread may have set weights during the compilation
            leaves, sums, _, shape = step(state.leaves, *arguments)
            check_after(step, turn, check, shape)
            context.check_inputs(turn, trained=True)
            state.replace(leaves)
            state.publish()
        return self._evaluator.values(read(sums))

    def _check_inputs(self, turn: Turn, *, values: bool) -> None:
        """Compare the inputs of a batch with those of training.

        With `values`, also compare their range with that of the augmentations. One batch of an epoch tells it, and
        reading all of them would take time.
        """
        self._context.check_inputs(turn)
        if values and turn.host is not None:
            check_range(self._recipe.augment, turn.host.x)

    @property
    def reads_origin(self) -> bool:
        """True if the steps read the `origin` of batches."""
        return reads_origin(self._recipe.augment)

    @property
    def devices(self) -> int:
        """The number of devices that a step runs on."""
        return len(self._context.placement.devices)

    def memory(self, batch: Batch) -> tuple[StepMemory, int]:
        """Return the memory that the training step of `fit` needs for such a batch, and its examples in all processes.

        The step is compiled if it was not, and not run.
        """
        context = self._context
        context.state.take_from_module()
        if self.reads_origin:  # of any values: the step is not run
            rows = len(jax.tree.leaves(batch.x)[0])
            batch = batch._replace(origin=np.zeros((rows, 3), np.int32))
        turn = context.turn(batch)
        context.check_inputs(turn)
        arguments = (context.state.leaves, self._evaluator.empty, context.key, turn.placed)
        step = self.step.prepare(arguments, quiet)
        check_before(step, turn, LabelCheck(context.learned.check_labels))
        return step_memory(step), turn.examples

    @property
    def data_wait(self) -> float:
        """The share of the last epoch's training, so far, in which the device waited for data, from 0 to 1."""
        return self._waiting.share

    def first_non_finite(self) -> str | None:
        """Describe where the last training step first made NaN or an infinite value; None if it made none.

        Raises:
          ModuleError: if the step was not kept.
        """
        if self._kept is None:
            raise ModuleError("No step was kept. Set model.keep_last_step = True before the training step in question.")
        leaves, batch = self._kept
        return first_non_finite(self._context.state.layout, self._recipe, leaves, self._context.key, batch)

    def skipped_steps(self, epoch: int, batches: int) -> dict[str, float]:
        """Return the number of updates that were skipped so far, as an entry of the epoch's log; {} if none can be.

        Args:
          epoch: that ends.
          batches: of the epoch.

        Raises:
          NonFiniteLossError: if every update of the epoch was skipped.
        """
        if self._skips is None:
            return {}
        state = self._context.state
        in_a_row, total = (int(read(state.leaf(i))) for i in (self._skips.in_a_row, self._skips.total))
        if in_a_row >= batches:
            raise NonFiniteLossError(
                f"All {batches} updates of epoch {epoch} were skipped, as their gradients held NaN or infinite "
                "values. Expected a finite one. The parameters are those of before. Lower the learning rate, look for "
                "NaN in the inputs, or find the layer with TerminateOnNaN(locate=True)."
            )
        if total != self._skipped_before:
            _log.warning("%d updates were skipped so far, as their gradients were not finite.", total)
        self._skipped_before = total
        return {"skipped_steps": float(total)}
