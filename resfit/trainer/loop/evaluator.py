"""Evaluation: loss and metrics over a dataset, exactly."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from resfit import metrics
from resfit.callbacks.logs import LazyLogs, as_float, as_plain, read
from resfit.data.batches import Batch, Batches
from resfit.errors import DataError
from resfit.trainer.context import LabelCheck, RunContext, announce, check_after, check_before, for_step, quiet
from resfit.trainer.device_batch import DeviceBatch
from resfit.trainer.devices.feeding import one_pass
from resfit.trainer.devices.multihost import Turn
from resfit.trainer.devices.placement import CompiledStep, Throttle, form_of
from resfit.trainer.devices.together import joined
from resfit.trainer.loop.boundary import Boundary
from resfit.trainer.loop.callback_list import CallbackList
from resfit.trainer.loop.interrupts import Interrupt
from resfit.trainer.several_steps import Taken, filled, grouped, repeated
from resfit.trainer.state.train_state import Leaves
from resfit.trainer.step import Recipe, evaluate_step
from resfit.trainer.views import averaging, mean_for_loss


class Evaluator:
    """Measures a model: runs evaluation steps, and turns sums of metrics into values.

    Args:
      context: of the model.
      recipe: the parts of the steps.

    Attributes:
      names: of the loss and the metrics, in order.
      empty: the sums of no example, on the devices: of training, one array for each. Those of evaluation are packed.
    """

    def __init__(self, context: RunContext, recipe: Recipe) -> None:
        self._context, self._metrics = context, recipe.metrics
        self.names = metrics.names(recipe.metrics)
        # By way of NumPy: a weakly typed zero would make the first step another program than the second.
        empty = [np.asarray(leaf) for leaf in jax.tree.leaves(recipe.metrics.empty())]
        replicate, packed = context.placement.replicate, recipe.metrics.packed(empty, np.stack)
        self.empty, self._nothing = (tuple(replicate(list(sums))) for sums in (empty, packed))
        self._recipe = recipe
        self._masks: dict[int, jax.Array] = {}  # of whole batches, by their number of rows
        self._steps: dict[str | None, tuple[CompiledStep, CompiledStep]] = {}

    def _steps_for(self, tta: str | None) -> tuple[CompiledStep, CompiledStep]:
        """Return the step for one batch, and that for several."""
        if tta not in self._steps:
            self._steps[tta] = self._made(tta)
        return self._steps[tta]

    def _made(self, tta: str | None) -> tuple[CompiledStep, CompiledStep]:
        context, recipe, layout = self._context, self._recipe, self._context.state.layout
        wrap = averaging(tta, mean_for_loss(recipe.compute_loss))

        # Metric sums cross into a step packed: JAX takes clu's classes apart in Python, at each call.
        def evaluate(leaves: Leaves, sums: Leaves, key: Any, batch: DeviceBatch) -> Any:
            whole = recipe.metrics.unpacked(sums)
            whole, loss, shape = evaluate_step(layout, recipe, leaves, whole, key, batch, wrap)
            return recipe.metrics.packed(whole), loss, shape

        def several(leaves: Leaves, sums: Leaves, key: Any, count: Any, batches: Any) -> Any:
            def one(sums: Leaves, batch: DeviceBatch) -> Any:
                sums, loss, shape = evaluate(leaves, sums, key, batch)
                return sums, (sums, loss, shape)

            sums, (each, losses, shape) = repeated(one, sums, batches, count)
            return sums, losses, each, shape

        one, group = (CompiledStep(context.inference_step(step), context.placement) for step in (evaluate, several))
        return one, group

    def values(self, sums: Leaves) -> dict[str, Any]:
        """Return the named values of sums of training on the host: the loss first, then metrics as they were given."""
        return self._named(self._metrics.unflatten(sums))

    def _named(self, sums: Any) -> dict[str, Any]:
        with np.errstate(invalid="ignore"):  # if every step so far was skipped, a mean is NaN
            values = sums.compute()
        return {name: as_float(values[name]) for name in self.names}

    def _values_of_packed(self, sums: Leaves) -> dict[str, Any]:
        return self._named(self._metrics.unpacked(sums))

    def logs(self, sums: Leaves, loss: jax.Array, examples: int, place: int | None = None) -> LazyLogs:
        """Return the log of a training batch, which is read from the device on access."""
        return LazyLogs(sums, self.values, self.names, loss, examples, place)

    def evaluate(
        self,
        data: Batches,
        steps: int | None,
        callbacks: CallbackList,
        stopped: Callable[[], bool],
        weights: str = "raw",
        tta: str | None = None,
    ) -> dict[str, Any]:
        """Return loss and metrics over a dataset, or its first batches.

        Args:
          data: the examples.
          steps: the number of batches; None for all.
          callbacks: to fire.
          stopped: returns True if a stop was requested.
          weights: "raw", as trained, or "ema", averaged.
          tta: a key of `views.TTA`; None for the images as they are.
        """
        with self._context.processes.failing_together():
            boundary = Boundary(self._context.processes, Interrupt(), stopped)
            return self.evaluate_until(boundary, data, steps, callbacks, weights, tta)

    def evaluate_until(
        self,
        boundary: Boundary,
        data: Batches,
        steps: int | None,
        callbacks: CallbackList,
        weights: str,
        tta: str | None = None,
    ) -> dict[str, Any]:
        """Evaluate as `evaluate` does, inside a run that a boundary may end.

        Raises:
          DataError: if there are no examples.
        """
        context = self._context
        callbacks.fire("on_test_begin", {})
        leaves, sums, check = context.state.visible(weights), self._nothing, context.label_check(data)
        throttle, compiling = Throttle(context.placement.run_ahead), announce(callbacks, "evaluate")
        begins, ends = callbacks.listens("on_test_batch_begin"), callbacks.listens("on_test_batch_end")
        steps_for = self._steps_for(tta)
        seen = 0
        i = 0
        with one_pass(data, context.placement, steps) as batches:
            on_one_cpu = context.placement.kind == "jit" and not context.placement.loops
            turns = context.processes.turns(batches, self._for_step if on_one_cpu else for_step)
            for group in grouped(turns, context.steps_per_execution, lambda turn: form_of(turn.placed)):
                if begins:
                    callbacks.fire("on_test_batch_begin", i, {})
                sums, taken = self._measured(steps_for, leaves, group, sums, check, compiling)
                for turn, (its_sums, loss, place) in zip(group, taken, strict=True):
                    if begins and turn is not group[0]:
                        callbacks.fire("on_test_batch_begin", i, {})
                    if ends:
                        logs = LazyLogs(its_sums, self._values_of_packed, self.names, loss, turn.examples, place)
                        callbacks.fire("on_test_batch_end", i, logs)
                    i += 1
                    seen += turn.examples
                throttle.add(taken[-1].loss)
                if boundary():
                    break
        if not seen:
            raise DataError("There are no examples to evaluate on. Expected at least one.")
        results = self._values_of_packed(read(sums))
        callbacks.fire("on_test_end", {name: as_plain(value) for name, value in results.items()})
        return results

    def evaluate_batch(self, batch: Batch) -> dict[str, Any]:
        """Return loss and metrics of one batch."""
        context, check = self._context, LabelCheck(self._context.learned.check_labels)
        turn, step = context.turn(batch), self._steps_for(None)[0]
        sums, _ = self._run(step, context.state.visible(), turn, self._nothing, check, quiet)
        return self._values_of_packed(read(sums))

    def _for_step(self, batch: Batch) -> DeviceBatch:
        """Return the arrays of a batch for a step, with the mask on the device. The mask of whole batches is kept."""
        mask: Any = batch.mask
        if isinstance(mask, np.ndarray):
            rows, whole = len(mask), batch.size == len(mask)
            mask = self._masks.get(rows) if whole else None
            if mask is None:
                mask = self._context.placement.replicate(batch.mask, copy=True)
            if whole:
                self._masks[rows] = mask
        return DeviceBatch(batch.x, batch.y, batch.weight, mask, batch.origin)

    def _measured(
        self,
        steps: tuple[CompiledStep, CompiledStep],
        leaves: Leaves,
        group: list[Turn],
        sums: Leaves,
        check: LabelCheck,
        on_compile: Callable[[bool], None],
    ) -> tuple[Leaves, list[Taken]]:
        """Return the sums after these turns, and the results of each."""
        context, taken = self._context, []
        one, several = steps
        if not context.runs_in_one_program:
            for turn in group:
                sums, loss = self._run(one, leaves, turn, sums, check, on_compile)
                taken.append(Taken(sums, loss, None))
            return sums, taken
        batches, count = filled([turn.placed for turn in group], context.steps_per_execution)
        arguments = (leaves, sums, context.key, count, batches)
        step = several.prepare(arguments, on_compile)
        for turn in group:
            context.check_inputs(turn)
            check_before(step, turn, check)
        sums, losses, each, _ = step(*arguments)
        return sums, [Taken(each, losses, i) for i in range(len(group))]

    def _run(
        self,
        prepared: CompiledStep,
        leaves: Leaves,
        turn: Turn,
        sums: Leaves,
        check: LabelCheck,
        on_compile: Callable[[bool], None],
    ) -> tuple[Leaves, jax.Array]:
        self._context.check_inputs(turn)
        arguments = (leaves, sums, self._context.key, turn.placed)
        step = prepared.prepare(arguments, on_compile)
        check_before(step, turn, check)
        with joined(prepared, step, arguments, on_compile) as take:
            sums, loss, shape = take(*arguments)
        check_after(step, turn, check, shape)
        return sums, loss
