"""Prediction: the outputs of every row, in order, while only a few batches are on the device."""

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

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
from resfit.trainer.views import Means, averaging, mean_for_kind


class Asked(NamedTuple):
    """The arguments of a prediction.

    Attributes:
      kind: a key of `OUTPUTS`.
      tta: a key of `views.TTA`; None for the images as they are.
      means: the mean over the views; None for that of the kind.
    """

    kind: str
    tta: str | None = None
    means: Means | None = None


class Predictor:
    """Applies a module in evaluation mode, batch by batch.

    Args:
      context: of the model.
      preprocess: applied to every input, or None.
    """

    def __init__(self, context: RunContext, preprocess: Preprocess | None) -> None:
        self._context, self._preprocess = context, preprocess
        self._steps: dict[Asked, tuple[CompiledStep, CompiledStep]] = {}

    def steps(self, asked: Asked) -> tuple[CompiledStep, CompiledStep]:
        """Return the step for one batch, and that for several."""
        if asked not in self._steps:
            context, output = self._context, OUTPUTS[asked.kind]
            wrap = averaging(asked.tta, asked.means or mean_for_kind(asked.kind))
            call = output.call if wrap is None else lambda module, x: output.call(wrap(module), x)
            step = functools.partial(predict_step, context.state.layout, self._preprocess, output.finish, call=call)
            one, several = (
                CompiledStep(context.inference_step(each), placement=context.placement, returns_state=False)
                for each in (step, functools.partial(_several, step))
            )
            self._steps[asked] = one, several
        return self._steps[asked]

    def predict(
        self,
        data: Batches,
        asked: Asked,
        steps: int | None,
        callbacks: CallbackList,
        stopped: Callable[[], bool],
        weights: str,
    ) -> Iterator[Any]:
        """Yield the outputs of each batch in order, as NumPy, without padding.

        Args:
          data: the examples; labels are ignored.
          asked: the kind of output, and the views.
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
            leaves, held = context.state.visible(weights), context.state.leaves
            boundary, compiling = Boundary(context.processes, Interrupt(), stopped), announce(callbacks, "predict")
            begins, ends = callbacks.listens("on_predict_batch_begin"), callbacks.listens("on_predict_batch_end")
            in_flight: collections.deque[tuple[Any, Turn]] = collections.deque()
            i = 0
            turns = context.processes.turns(batches, lambda batch: batch.x)
            for group in grouped(turns, context.steps_per_execution, lambda turn: form_of(turn.placed)):
                if begins:
                    callbacks.fire("on_predict_batch_begin", i, {})
                if context.state.leaves is not held:
                    if any(leaf.is_deleted() for leaf in leaves):  # this thread took a training step in between
                        leaves = context.state.visible(weights)
                    held = context.state.leaves
                for turn, outputs in zip(group, self._predicted(leaves, group, asked, compiling), strict=False):
                    if begins and turn is not group[0]:
                        callbacks.fire("on_predict_batch_begin", i, {})
                    if ends:
                        callbacks.fire("on_predict_batch_end", i, {"outputs": outputs})
                    in_flight.append((outputs, turn))
                    i += 1
                if len(in_flight) > context.placement.run_ahead:
                    # The older half, after one wait, as `Throttle` does.
                    jax.block_until_ready(in_flight[len(in_flight) // 2 - 1][0])
                    for _ in range(len(in_flight) // 2):
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
        return jax.tree.map(np.asarray, read(self._run(self._context.state.visible(), turn, Asked("logits"), quiet)))

    def _predicted(
        self, leaves: Leaves, group: list[Turn], asked: Asked, on_compile: Callable[[bool], None]
    ) -> Sequence[Any]:
        """Return the outputs of each turn, and perhaps more."""
        context = self._context
        if not context.runs_in_one_program:
            return [self._run(leaves, turn, asked, on_compile) for turn in group]
        for turn in group:
            context.check_inputs(turn)
        batches, count = filled([turn.placed for turn in group], context.steps_per_execution)
        arguments = (leaves, context.key, count, batches)
        outputs: Sequence[Any] = self.steps(asked)[1].prepare(arguments, on_compile)(*arguments)
        return outputs

    def _run(self, leaves: Leaves, turn: Turn, asked: Asked, on_compile: Callable[[bool], None]) -> Any:
        self._context.check_inputs(turn)
        arguments = (leaves, self._context.key, turn.placed)
        return self.steps(asked)[0].prepare(arguments, on_compile)(*arguments)


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
    host = read(outputs)
    if isinstance(host, np.ndarray):
        return host[: turn.examples]
    return jax.tree.map(lambda a: np.asarray(a)[: turn.examples], host)
