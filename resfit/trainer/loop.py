"""Epochs and batches: the one place where hooks fire."""

import collections
import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from resfit import metrics
from resfit.callbacks.logs import LazyLogs, as_float, read
from resfit.data.batches import Batch, Batches
from resfit.data.epochs import Epochs
from resfit.errors import DataError, ModuleError, NonFiniteLossError, StepFailed
from resfit.optimizers import Skips
from resfit.trainer.boundary import Boundary
from resfit.trainer.callback_list import CallbackList
from resfit.trainer.checkpoint.manager import Keeper, Progress
from resfit.trainer.input_stall import Waiting
from resfit.trainer.interrupts import Interrupt
from resfit.trainer.memory import StepMemory, step_memory
from resfit.trainer.multihost import Processes, Turn
from resfit.trainer.non_finite import first_non_finite
from resfit.trainer.outputs import OUTPUTS
from resfit.trainer.placement import AXIS, CompiledStep, Placement, Throttle
from resfit.trainer.run import Run, Validation
from resfit.trainer.run_state import RunState
from resfit.trainer.state import Leaves
from resfit.trainer.step import DeviceBatch, OutputsShape, Recipe, evaluate_step, predict_step, train_step

_log = logging.getLogger("resfit")

LabelCheck = Callable[[Any, OutputsShape], None]
InputCheck = Callable[[Any, bool], None]


class Loop:
    """Runs compiled steps over batches.

    Args:
      state: of the run.
      recipe: what the steps do; None if the model was not compiled and can only predict.
      preprocess: applied to every input.
      placement: where everything lives.
      seed: of everything random inside the steps.
      check: raises if labels do not fit outputs of a shape. Called once the step is traced, before it runs: with all
        labels where the data set has them at hand, else with the labels of each batch. Where nothing is traced
        (dispatch="eager"), after the step and before its result is kept.
      check_inputs: (x, whether a step was trained on it): False: raises if inputs are of another kind than those
        trained on; True: remembers of what kind they are.

    Attributes:
      keep_last_step: whether to keep a copy of the state before each training step, and its batch. It costs the memory
        and the time of a copy.
    """

    def __init__(
        self,
        state: RunState,
        recipe: Recipe | None,
        preprocess: Callable[[Any], Any] | None,
        placement: Placement,
        seed: int,
        check: LabelCheck,
        check_inputs: InputCheck,
    ) -> None:
        self.state = state
        self.keep_last_step = False
        self._waiting = Waiting()
        self._kept: tuple[Leaves, DeviceBatch] | None = None
        self._check_kind = check_inputs
        self._placement = placement
        self._check = check
        self.processes = Processes(placement)
        self._key = placement.replicate(jax.random.key_data(jax.random.key(seed)))
        layout = state.layout

        def fused(step: Callable[..., Any]) -> Callable[..., Any]:
            if state.convolutions is None or placement.kind == "eager":  # which runs the step as it is written
                return step
            return state.convolutions.fused(step)

        self._predict = {
            name: CompiledStep(
                fused(functools.partial(predict_step, layout, preprocess, output.finish, call=output.call)),
                placement,
                returns_state=False,
            )
            for name, output in OUTPUTS.items()
        }
        if recipe is None:
            return

        # Metric sums cross into a step flat, as the state does: JAX takes clu's classes apart in Python, at each call.
        def train(leaves: Leaves, sums: Leaves, key: Any, batch: DeviceBatch, axis: str | None = None) -> Any:
            whole = recipe.metrics.unflatten(sums)
            leaves, whole, loss, shape = train_step(layout, recipe, leaves, whole, key, batch, axis)
            return leaves, tuple(jax.tree.leaves(whole)), loss, shape

        def evaluate(leaves: Leaves, sums: Leaves, key: Any, batch: DeviceBatch) -> Any:
            whole = recipe.metrics.unflatten(sums)
            whole, loss, shape = evaluate_step(layout, recipe, leaves, whole, key, batch)
            return tuple(jax.tree.leaves(whole)), loss, shape

        def compute(sums: Leaves) -> dict[str, Any]:
            with np.errstate(invalid="ignore"):  # where every step so far was skipped, a mean is NaN
                values = recipe.metrics.unflatten(sums).compute()
            return {name: as_float(values[name]) for name in self._names}

        self._compute = compute  # named values of sums on the host: loss first, then metrics as they were given

        self._recipe = recipe
        part = functools.partial(train, axis=AXIS) if placement.replicas > 1 else None
        self._train = CompiledStep(train, placement, donate=True, mapped=part)
        # For train_on_batch, whose result the user's module shares.
        self._train_kept = CompiledStep(train, placement, mapped=part)
        self._evaluate = CompiledStep(fused(evaluate), placement)
        self._names = metrics.names(recipe.metrics)
        self.sums: Leaves = ()  # of the metrics, since the epoch began
        # By way of NumPy: a weakly typed zero would make the first step another program than the second.
        self._scheduled = recipe.rate_index if recipe.schedule is not None else None
        self._skips = state.skips()
        self._skipped_before = 0
        empty = [np.asarray(leaf) for leaf in jax.tree.leaves(recipe.metrics.empty())]
        self._empty: Leaves = tuple(placement.replicate(empty))

    # --- training -----------------------------------------------------------------------------------------------------

    def train(
        self,
        data: Epochs,
        epochs: range,
        callbacks: CallbackList,
        stopped: Callable[[], bool],
        validation: Validation | None,
        interrupt: Interrupt,
        keeper: Keeper | None = None,
        start: Progress | None = None,
    ) -> Progress:
        """Trains. However it ends, the user's module holds the values of the last completed step.

        Args:
          data: cut into epochs.
          epochs: their numbers, as callbacks see them.
          callbacks: to fire.
          stopped: whether somebody asked to stop.
          validation: None for none.
          interrupt: what a signal asks for.
          keeper: saves the run where a callback asks for it, and where a signal ends it.
          start: where a saved run goes on.

        Returns:
          How far it has come.
        """
        check = _label_check(data.batches, self._check)
        here = Progress(epochs.start) if start is None else start
        logs = dict(here.logs)
        try:
            with self.processes.failing_together():
                run = Run(self, data, callbacks, validation, keeper, interrupt, stopped)
                callbacks.fire("on_train_begin", {})
                if start is None:
                    self.state.take_from_module()
                self.state.between_steps = True
                if start is not None and not start.batch:
                    run.restore()
                run.check_interrupt()
                while here.epoch < epochs.stop and not (here.stopping and not here.batch):
                    callbacks.fire("on_epoch_begin", here.epoch, {})
                    last: LazyLogs | None = None
                    if here.batch:
                        run.restore()
                        last = LazyLogs(self.sums, self._compute, self._names, self.state.leaves[-1], 0)
                    else:
                        self.sums = self._empty
                    if here.validating:
                        here = run.validated(here)
                    if not here.stopping:
                        for last in self._train_batches(data, callbacks, check, here.batch, keeper):  # noqa: B007
                            here = run.after_batch(here)
                            if here.stopping or run.rolls_back():
                                break
                    if run.rolls_back():
                        here = run.rolled_back()
                        continue
                    logs = {**_some(last, f"Epoch {here.epoch}"), **data.report}
                    if self._skips is not None:
                        logs["skipped_steps"] = self._skipped(self._skips, here)
                    if validation is not None and not validation.every and validation.due(here.epoch):
                        here = run.validated(here)
                    logs |= here.validated
                    if self._scheduled is not None:
                        logs["learning_rate"] = float(read(self.state.leaf(self._scheduled)))
                    callbacks.fire("on_epoch_end", here.epoch, logs)
                    here = run.after_epoch(here, logs)
                    if run.rolls_back():
                        here = run.rolled_back()
                self.state.take_from_module()  # what callbacks assigned last, as after every other step
        except BaseException as exception:
            lost = self.state.recover()
            callbacks.fire("on_exception", exception)
            if lost and isinstance(exception, Exception):
                raise StepFailed(
                    f"A step failed on the device and took the state with it: {exception}. The module is back at the "
                    "values it last held (of the start of this fit, or of the last time model.module was read); the "
                    "optimizer, the averages and the step counter start again, as after compile."
                    + ("" if keeper is None else " fit with resume=True goes on from the newest checkpoint.")
                ) from exception
            raise
        finally:
            self.state.publish()
            self.state.between_steps = False
            callbacks.fire("on_train_end", logs)
        return here

    def _train_batches(
        self, data: Epochs, callbacks: CallbackList, check: LabelCheck, done: int, keeper: Keeper | None
    ) -> Iterator[LazyLogs]:
        """One epoch: the logs of each batch, once its step is on the device and its hooks have fired."""
        throttle = Throttle(self._placement.run_ahead)
        waiting = self._waiting = Waiting()
        checked: set[int] = set()
        for i, turn in enumerate(waiting.over(self.processes.turns(data.next(done), _for_step)), done):
            callbacks.fire("on_train_batch_begin", i, {})
            self.state.own()
            self._check_inputs(turn, False)
            arguments = (self.sums, self._key, turn.placed)
            step = self._train.prepare((self.state.leaves, *arguments), _announce(callbacks, "train"))
            if keeper is not None and turn.rows not in checked:
                keeper.check_program(*self._train.described(turn.placed))
                checked.add(turn.rows)
            _check_before(step, turn, check)
            if self.keep_last_step:
                self._kept = self.state.copy(), turn.placed
            leaves, sums, loss, shape = step(self.state.leaves, *arguments)
            _check_after(step, turn, check, shape)
            self.state.leaves, self.sums = leaves, sums
            self._check_inputs(turn, True)
            waiting.step(loss)
            self.state.epoch = data.passes
            logs = LazyLogs(self.sums, self._compute, self._names, loss, turn.examples)
            callbacks.fire("on_train_batch_end", i, logs)
            throttle.add(loss)
            yield logs

    def _skipped(self, skips: Skips, here: Progress) -> float:
        """How many updates were skipped so far; raises if those of a whole epoch were."""
        in_a_row, total = (int(read(self.state.leaf(i))) for i in (skips.in_a_row, skips.total))
        if in_a_row >= here.batch:
            raise NonFiniteLossError(
                f"All {here.batch} updates of epoch {here.epoch} were skipped, as their gradients held NaN or infinite "
                "values. Expected a finite one. The parameters are those of before. Lower the learning rate, look for "
                "NaN in the inputs, or find the layer with TerminateOnNaN(locate=True)."
            )
        if total != self._skipped_before:
            _log.warning("%d updates were skipped so far, as their gradients were not finite.", total)
        self._skipped_before = total
        return float(total)

    def validate(
        self, validation: Validation, callbacks: CallbackList, interrupt: Interrupt, save: Callable[[], None]
    ) -> dict[str, Any]:
        """The values of a validation inside `train`; save: what to do before an interrupt ends it."""
        boundary = Boundary(self.processes, interrupt, validation.stopped, save)
        results = self._evaluate_all(validation.data, validation.steps, callbacks, boundary, validation.weights())
        return {f"val_{name}": value for name, value in results.items()}

    @property
    def data_wait(self) -> float:
        """The share of the last epoch's training, so far, in which the device waited for data, from 0 to 1."""
        return self._waiting.share

    def first_non_finite(self) -> str | None:
        """Where the last training step first made NaN or an infinite value, in words; None if it did not.

        Raises:
          ModuleError: if the step was not kept.
        """
        if self._kept is None:
            raise ModuleError("No step was kept. Set model.keep_last_step = True before the training step in question.")
        leaves, batch = self._kept
        return first_non_finite(self.state.layout, self._recipe, leaves, self._key, batch)

    def train_batch(self, batch: Batch) -> dict[str, float]:
        """One training step on its own; the user's module holds the result."""
        self.state.take_from_module()
        turn = self._turn(batch)
        self._check_inputs(turn, False)
        arguments = (self.state.leaves, self._empty, self._key, turn.placed)
        step = self._train_kept.prepare(arguments, _quiet)
        _check_before(step, turn, self._check)
        leaves, sums, _, shape = step(*arguments)
        _check_after(step, turn, self._check, shape)
        self._check_inputs(turn, True)
        self.state.replace(leaves)
        self.state.publish()
        return self._compute(read(sums))

    def memory(self, batch: Batch) -> tuple[StepMemory, int]:
        """What the training step of `train` takes for a batch like this, and of how many examples, in all processes.

        The step is compiled if it was not, and not run.
        """
        self.state.take_from_module()
        turn = self._turn(batch)
        self._check_inputs(turn, False)
        step = self._train.prepare((self.state.leaves, self._empty, self._key, turn.placed), _quiet)
        _check_before(step, turn, self._check)
        return step_memory(step), turn.examples

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        data: Batches,
        steps: int | None,
        callbacks: CallbackList,
        stopped: Callable[[], bool],
        weights: str = "raw",
    ) -> dict[str, Any]:
        """Loss and metrics over a data set, or its first batches, with the weights as trained or averaged ("ema")."""
        with self.processes.failing_together():
            boundary = Boundary(self.processes, Interrupt(), stopped)
            return self._evaluate_all(data, steps, callbacks, boundary, weights)

    def _evaluate_all(
        self, data: Batches, steps: int | None, callbacks: CallbackList, boundary: Boundary, weights: str
    ) -> dict[str, Any]:
        callbacks.fire("on_test_begin", {})
        leaves = self.state.visible(weights)
        check = _label_check(data, self._check)
        sums = self._empty
        throttle = Throttle(self._placement.run_ahead)
        seen = 0
        for i, turn in enumerate(self.processes.turns(itertools.islice(data.epoch(0), steps), _for_step)):
            callbacks.fire("on_test_batch_begin", i, {})
            sums, loss = self._evaluate_batch(leaves, turn, sums, check, _announce(callbacks, "evaluate"))
            callbacks.fire("on_test_batch_end", i, LazyLogs(sums, self._compute, self._names, loss, turn.examples))
            throttle.add(loss)
            seen += turn.examples
            if boundary():
                break
        if not seen:
            raise DataError("There are no examples to evaluate on. Expected at least one.")
        results = self._compute(read(sums))
        callbacks.fire("on_test_end", dict(results))
        return results

    def evaluate_batch(self, batch: Batch) -> dict[str, Any]:
        """Loss and metrics of one batch."""
        turn = self._turn(batch)
        sums, _ = self._evaluate_batch(self.state.visible(), turn, self._empty, self._check, _quiet)
        return self._compute(read(sums))

    def _evaluate_batch(
        self, leaves: Leaves, turn: Turn, sums: Any, check: LabelCheck, announce: Callable[[bool], None]
    ) -> Any:
        self._check_inputs(turn, False)
        arguments = (leaves, sums, self._key, turn.placed)
        step = self._evaluate.prepare(arguments, announce)
        _check_before(step, turn, check)
        sums, loss, shape = step(*arguments)
        _check_after(step, turn, check, shape)
        return sums, loss

    # --- prediction ---------------------------------------------------------------------------------------------------

    def predict(
        self,
        data: Batches,
        kind: str,
        steps: int | None,
        callbacks: CallbackList,
        stopped: Callable[[], bool],
        weights: str,
    ) -> Iterator[Any]:
        """The outputs for every row in order, batch by batch, as NumPy. Only a few batches are ever on the device.

        Args:
          data: the examples; labels are ignored.
          kind: a key of `OUTPUTS`.
          steps: how many batches; None for all.
          callbacks: to fire.
          stopped: whether somebody asked to stop.
          weights: as trained ("raw") or averaged ("ema").
        """
        with self.processes.failing_together():
            yield from self._predict_all(data, kind, steps, callbacks, stopped, weights)

    def _predict_all(
        self,
        data: Batches,
        kind: str,
        steps: int | None,
        callbacks: CallbackList,
        stopped: Callable[[], bool],
        weights: str,
    ) -> Iterator[Any]:
        callbacks.fire("on_predict_begin", {})
        self.state.take_from_module()
        boundary = Boundary(self.processes, Interrupt(), stopped)
        flying: collections.deque[tuple[Any, int, int]] = collections.deque()

        def landed() -> Any:
            outputs, rows, size = flying.popleft()
            shapes = jax.tree.map(np.shape, outputs)
            if any(np.shape(leaf)[:1] != (rows,) for leaf in jax.tree.leaves(outputs)):
                raise ModuleError(
                    f"For a batch of {rows} rows the module returned shape {shapes}. Expected one output per row, "
                    "so that predict can leave out those that only fill up the last batch."
                )
            return jax.tree.map(lambda a: np.asarray(a)[:size], read(outputs))

        empty = True
        for i, turn in enumerate(self.processes.turns(itertools.islice(data.epoch(0), steps), lambda batch: batch.x)):
            empty = False
            callbacks.fire("on_predict_batch_begin", i, {})
            # Chosen anew for every batch: between two of them somebody may have trained, and donated the old ones.
            leaves = self.state.layout.chosen(self.state.leaves, weights)
            outputs = self._predict_batch(leaves, turn, kind, _announce(callbacks, "predict"))
            callbacks.fire("on_predict_batch_end", i, {"outputs": outputs})
            flying.append((outputs, turn.rows, turn.examples))
            if len(flying) > self._placement.run_ahead:
                yield landed()
            if boundary():
                break
        while flying:
            yield landed()
        if empty:
            raise DataError("There are no examples to predict. Expected at least one.")
        callbacks.fire("on_predict_end", {})

    def predict_batch(self, x: Any) -> Any:
        """The outputs for one batch, as NumPy."""
        turn = self._turn(Batch(x, None, None, None, len(jax.tree.leaves(x)[0])), lambda batch: batch.x)
        return jax.tree.map(np.asarray, read(self._predict_batch(self.state.visible(), turn, "logits", _quiet)))

    def _predict_batch(self, leaves: Leaves, turn: Turn, kind: str, announce: Callable[[bool], None]) -> Any:
        self._check_inputs(turn, False)
        arguments = (leaves, self._key, turn.placed)
        return self._predict[kind].prepare(arguments, announce)(*arguments)

    def _turn(self, batch: Batch, wanted: Callable[[Batch], Any] | None = None) -> Turn:
        """A batch on its own: of every process, its part."""
        return next(self.processes.turns([batch], wanted or _for_step))

    def _check_inputs(self, turn: Turn, trained: bool) -> None:
        if turn.host is not None:
            self._check_kind(turn.host.x, trained)


def _for_step(batch: Batch) -> DeviceBatch:
    return DeviceBatch(batch.x, batch.y, batch.weight, batch.mask)


def _check_before(step: Callable[..., Any], turn: Turn, check: LabelCheck) -> None:
    """Check the labels of a batch before its step runs, if the step is compiled."""
    if turn.host is not None and isinstance(step, jax.stages.Compiled):
        results: Any = step.out_tree
        check(turn.host.y, results.children()[-1].node_data()[1])


def _check_after(step: Callable[..., Any], turn: Turn, check: LabelCheck, shape: OutputsShape) -> None:
    """Check the labels of a batch after its step ran, if the step is not compiled."""
    if turn.host is not None and not isinstance(step, jax.stages.Compiled):
        check(turn.host.y, shape)


def _some(logs: LazyLogs | None, what: str) -> LazyLogs:
    if logs is None:
        raise DataError(f"{what} had no batches. Expected at least one.")
    return logs


def _label_check(data: Batches, check: LabelCheck) -> LabelCheck:
    if data.labels is None:
        return check
    pending = [data.labels]

    def once(_: Any, shape: OutputsShape) -> None:
        if pending:
            check(pending.pop(), shape)

    return once


def _announce(callbacks: CallbackList, what: str) -> Callable[[bool], None]:
    return lambda begins: callbacks.fire("on_compile_begin" if begins else "on_compile_end", what)


def _quiet(begins: bool) -> None:
    """Nobody is told."""
