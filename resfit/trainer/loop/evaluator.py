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
      empty: the sums of no example, on the devices.
    """

    def __init__(self, context: RunContext, recipe: Recipe) -> None:
        self._context, self._metrics = context, recipe.metrics
        self.names = metrics.names(recipe.metrics)
        # By way of NumPy: a weakly typed zero would make the first step another program than the second.
        empty = [np.asarray(leaf) for leaf in jax.tree.leaves(recipe.metrics.empty())]
        self.empty: Leaves = tuple(context.placement.replicate(empty))
        self._recipe = recipe
        self._steps: dict[str | None, tuple[CompiledStep, CompiledStep]] = {}

    def _steps_for(self, tta: str | None) -> tuple[CompiledStep, CompiledStep]:
        """Return the step for one batch, and that for several."""
        if tta not in self._steps:
            self._steps[tta] = self._made(tta)
        return self._steps[tta]

    def _made(self, tta: str | None) -> tuple[CompiledStep, CompiledStep]:
        context, recipe, layout = self._context, self._recipe, self._context.state.layout
        wrap = averaging(tta, mean_for_loss(recipe.compute_loss))

        # Metric sums cross into a step flat, as the state does: JAX takes clu's classes apart in Python, at each call.
        def evaluate(leaves: Leaves, sums: Leaves, key: Any, batch: DeviceBatch) -> Any:
            whole = recipe.metrics.unflatten(sums)
            whole, loss, shape = evaluate_step(layout, recipe, leaves, whole, key, batch, wrap)
            return tuple(jax.tree.leaves(whole)), loss, shape

        def several(leaves: Leaves, sums: Leaves, key: Any, count: Any, batches: Any) -> Any:
            def one(sums: Leaves, batch: DeviceBatch) -> Any:
                sums, loss, shape = evaluate(leaves, sums, key, batch)
                return sums, (sums, loss, shape)

            sums, (each, losses, shape) = repeated(one, sums, batches, count)
            return sums, losses, each, shape

        one, group = (CompiledStep(context.inference_step(step), context.placement) for step in (evaluate, several))
        return one, group

    def values(self, sums: Leaves) -> dict[str, Any]:
        """Return the named values of sums on the host: the loss first, then metrics as they were given."""
        with np.errstate(invalid="ignore"):  # if every step so far was skipped, a mean is NaN
            values = self._metrics.unflatten(sums).compute()
        return {name: as_float(values[name]) for name in self.names}

    def logs(self, sums: Leaves, loss: jax.Array, examples: int, place: int | None = None) -> LazyLogs:
        """Return the log of a batch, which is read from the device on access."""
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
        leaves, sums, check = context.state.visible(weights), self.empty, context.label_check(data)
        throttle, compiling = Throttle(context.placement.run_ahead), announce(callbacks, "evaluate")
        listened = callbacks.listens("on_test_batch_end")
        seen = 0
        i = 0
        with one_pass(data, context.placement, steps) as batches:
            turns = context.processes.turns(batches, for_step)
            for group in grouped(turns, context.steps_per_execution, lambda turn: form_of(turn.placed)):
                callbacks.fire("on_test_batch_begin", i, {})
                sums, taken = self._measured(leaves, group, sums, check, compiling, tta)
                for turn, (its_sums, loss, place) in zip(group, taken, strict=True):
                    if turn is not group[0]:
                        callbacks.fire("on_test_batch_begin", i, {})
                    if listened:
                        callbacks.fire("on_test_batch_end", i, self.logs(its_sums, loss, turn.examples, place))
                    i += 1
                    seen += turn.examples
                throttle.add(taken[-1].loss)
                if boundary():
                    break
        if not seen:
            raise DataError("There are no examples to evaluate on. Expected at least one.")
        results = self.values(read(sums))
        callbacks.fire("on_test_end", {name: as_plain(value) for name, value in results.items()})
        return results

    def evaluate_batch(self, batch: Batch) -> dict[str, Any]:
        """Return loss and metrics of one batch."""
        context = self._context
        turn = context.turn(batch)
        sums, _ = self._run(context.state.visible(), turn, self.empty, LabelCheck(context.learned.check_labels), quiet)
        return self.values(read(sums))

    def _measured(
        self,
        leaves: Leaves,
        group: list[Turn],
        sums: Leaves,
        check: LabelCheck,
        on_compile: Callable[[bool], None],
        tta: str | None,
    ) -> tuple[Leaves, list[Taken]]:
        """Return the sums after these turns, and the results of each."""
        context, taken = self._context, []
        if not context.runs_in_one_program:
            for turn in group:
                sums, loss = self._run(leaves, turn, sums, check, on_compile, tta)
                taken.append(Taken(sums, loss, None))
            return sums, taken
        batches, count = filled([turn.placed for turn in group], context.steps_per_execution)
        arguments = (leaves, sums, context.key, count, batches)
        step = self._steps_for(tta)[1].prepare(arguments, on_compile)
        for turn in group:
            context.check_inputs(turn)
            check_before(step, turn, check)
        sums, losses, each, _ = step(*arguments)
        return sums, [Taken(each, losses, i) for i in range(len(group))]

    def _run(
        self,
        leaves: Leaves,
        turn: Turn,
        sums: Leaves,
        check: LabelCheck,
        on_compile: Callable[[bool], None],
        tta: str | None = None,
    ) -> tuple[Leaves, jax.Array]:
        self._context.check_inputs(turn)
        arguments = (leaves, sums, self._context.key, turn.placed)
        one = self._steps_for(tta)[0]
        step = one.prepare(arguments, on_compile)
        check_before(step, turn, check)
        with joined(one, step, arguments, on_compile) as take:
            sums, loss, shape = take(*arguments)
        check_after(step, turn, check, shape)
        return sums, loss
