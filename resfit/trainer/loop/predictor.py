"""Prediction: the outputs of every row, in order, while only a few batches are on the device."""

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from resfit.callbacks.logs import read
from resfit.data.batches import Batch, Batches
from resfit.errors import DataError, ModuleError
from resfit.preprocess import Preprocess
from resfit.trainer.context import RunContext, announce, quiet
from resfit.trainer.devices.feeding import one_pass
from resfit.trainer.devices.multihost import Turn
from resfit.trainer.devices.placement import CompiledStep, form_of
from resfit.trainer.learned.outputs import OUTPUTS
from resfit.trainer.loop.boundary import Boundary
from resfit.trainer.loop.callback_list import CallbackList
from resfit.trainer.loop.interrupts import Interrupt
from resfit.trainer.several_steps import filled, grouped, repeated
from resfit.trainer.state.train_state import Leaves
from resfit.trainer.step import predict_step


class Predictor:
    """Applies a module in evaluation mode, batch by batch.

    Args:
      context: of the model.
      preprocess: applied to every input, or None.
    """

    def __init__(self, context: RunContext, preprocess: Preprocess | None) -> None:
        self._context = context
        compiled = functools.partial(CompiledStep, placement=context.placement, returns_state=False)
        self.steps: dict[str, CompiledStep] = {}
        self._several: dict[str, CompiledStep] = {}
        for name, output in OUTPUTS.items():
            step = functools.partial(predict_step, context.state.layout, preprocess, output.finish, call=output.call)
            self.steps[name] = compiled(context.inference_step(step))
            self._several[name] = compiled(context.inference_step(functools.partial(_several, step)))

    def predict(
        self,
        data: Batches,
        kind: str,
        steps: int | None,
        callbacks: CallbackList,
        stopped: Callable[[], bool],
        weights: str,
    ) -> Iterator[Any]:
        """Yield the outputs of each batch in order, as NumPy, without padding.

        Args:
          data: the examples; labels are ignored.
          kind: a key of `OUTPUTS`.
          steps: the number of batches; None for all.
          callbacks: to fire.
          stopped: returns True if a stop was requested.
          weights: "raw", as trained, or "ema", averaged.

        Raises:
          DataError: if there are no examples.
          ModuleError: if the module returns another number of rows than it was given.
        """
        context = self._context
        with context.processes.failing_together(), one_pass(data, context.placement, steps) as batches:
            callbacks.fire("on_predict_begin", {})
            leaves = context.state.visible(weights)
            boundary, compiling = Boundary(context.processes, Interrupt(), stopped), announce(callbacks, "predict")
            in_flight: collections.deque[tuple[Any, Turn]] = collections.deque()
            i = 0
            turns = context.processes.turns(batches, lambda batch: batch.x)
            for group in grouped(turns, context.steps_per_execution, lambda turn: form_of(turn.placed)):
                callbacks.fire("on_predict_batch_begin", i, {})
                if any(leaf.is_deleted() for leaf in leaves):  # this thread took a training step in between
                    leaves = context.state.visible(weights)
                for turn, outputs in zip(group, self._predicted(leaves, group, kind, compiling), strict=False):
                    if turn is not group[0]:
                        callbacks.fire("on_predict_batch_begin", i, {})
                    callbacks.fire("on_predict_batch_end", i, {"outputs": outputs})
                    in_flight.append((outputs, turn))
                    i += 1
                while len(in_flight) > context.placement.run_ahead:
                    yield _on_host(*in_flight.popleft())
                if boundary():
                    break
            while in_flight:
                yield _on_host(*in_flight.popleft())
            if not i:
                raise DataError("There are no examples to predict. Expected at least one.")
            callbacks.fire("on_predict_end", {})

    def predict_batch(self, x: Any) -> Any:
        """Return the logits of one batch, as NumPy."""
        batch = Batch(x, None, None, None, len(jax.tree.leaves(x)[0]))
        turn = self._context.turn(batch, lambda batch: batch.x)
        return jax.tree.map(np.asarray, read(self._run(self._context.state.visible(), turn, "logits", quiet)))

    def _predicted(
        self, leaves: Leaves, group: list[Turn], kind: str, on_compile: Callable[[bool], None]
    ) -> Sequence[Any]:
        """Return the outputs of each turn, and perhaps more."""
        context = self._context
        if not context.runs_in_one_program:
            return [self._run(leaves, turn, kind, on_compile) for turn in group]
        for turn in group:
            context.check_inputs(turn)
        batches, count = filled([turn.placed for turn in group], context.steps_per_execution)
        arguments = (leaves, context.key, count, batches)
        outputs: Sequence[Any] = self._several[kind].prepare(arguments, on_compile)(*arguments)
        return outputs

    def _run(self, leaves: Leaves, turn: Turn, kind: str, on_compile: Callable[[bool], None]) -> Any:
        self._context.check_inputs(turn)
        arguments = (leaves, self._context.key, turn.placed)
        return self.steps[kind].prepare(arguments, on_compile)(*arguments)


def _several(step: Callable[..., Any], leaves: Leaves, key: Any, count: Any, batches: Any) -> list[Any]:
    """Return the outputs for each of the batches."""
    _, outputs = repeated(lambda carry, x: (carry, step(leaves, key, x)), (), batches, count)
    return [jax.tree.map(lambda each, i=i: each[i], outputs) for i in range(len(batches))]


def _on_host(outputs: Any, turn: Turn) -> Any:
    if any(np.shape(leaf)[:1] != (turn.rows,) for leaf in jax.tree.leaves(outputs)):
        raise ModuleError(
            f"For a batch of {turn.rows} rows the module returned shape {jax.tree.map(np.shape, outputs)}. Expected "
            "one output per row, so that predict can leave out those that only fill up the last batch."
        )
    return jax.tree.map(lambda a: np.asarray(a)[: turn.examples], read(outputs))
