"""The state of a model at one moment, for tools that examine it and for going back to it."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax

from resfit import losses
from resfit.errors import CompileError, NotCompiledError
from resfit.preprocess import Preprocess
from resfit.trainer.context import RunContext
from resfit.trainer.devices.memory import StepMemory
from resfit.trainer.learning_rate import LearningRate
from resfit.trainer.state.train_state import Leaves, StateLayout


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The state of a model at one moment, on its devices.

    The arrays are those of the model, which copies them before the next training step: a snapshot costs no memory until
    training continues.

    Attributes:
      layout: the names and order of the arrays.
      leaves: all arrays, those of the optimizer included.
      preprocess: applied to every input, or None.
      loss: of the last `compile`, or None if the model is not compiled.
      multi_label: True if every output is an independent label; None if that is unknown.
      steps: training steps since `compile`.
      epoch: passes over the data begun since `compile`.
      facts: the facts that the model had learned from its data.
    """

    layout: StateLayout
    leaves: Leaves
    preprocess: Preprocess | None
    loss: losses.Loss | None
    multi_label: bool | None
    steps: int
    epoch: int
    facts: tuple[Any, ...]
    _context: RunContext
    _rate: LearningRate | None
    _asked_rate: float | str | None
    _memory: Callable[[Any], tuple[StepMemory, int]] | None

    @classmethod
    def of(
        cls,
        context: RunContext,
        rate: LearningRate | None,
        memory: Callable[[Any], tuple[StepMemory, int]] | None,
        *,
        compiled: bool,
    ) -> "Snapshot":
        """Take the present state.

        Args:
          context: of the model.
          rate: of the model, or None before `compile`.
          memory: `Trainer.memory` of the model, or None before `compile`.
          compiled: True if the model is compiled.

        Raises:
          ModuleError: if the module was changed since the model was made.
        """
        state, learned = context.state, context.learned
        with state.lock:
            state.check_structure()
            state.take_from_module()
            state.publish()  # arrays that the module holds are copied before a training step takes them
            return cls(
                state.layout,
                state.leaves,
                learned.inputs.preprocess,
                learned.labels.loss if compiled else None,
                learned.labels.multi_label,
                state.steps(),
                state.epoch,
                learned.facts(),
                context,
                rate,
                None if rate is None else rate.asked,
                memory,
            )

    def require_compiled(self, method: str) -> losses.Loss:
        """Return the loss.

        Raises:
          NotCompiledError: if the model is not compiled.
        """
        if self.loss is None:
            raise NotCompiledError(f"The model was not compiled. Call model.compile(...) before {method}.")
        return self.loss

    @property
    def variables(self) -> Leaves:
        """The parameters and carried arrays, for `module`."""
        return self.layout.chosen(self.leaves, "raw")

    def module(self, variables: Leaves, *, train: bool = False) -> Any:
        """Return the module with these variables in a mode, for use under `jax.jit`.

        Args:
          variables: such as those of this snapshot, perhaps traced.
          train: the mode.
        """
        params, carried = self.layout.unflatten_model(variables)
        # Evaluation draws nothing, but the module may hold random streams.
        return self.layout.plan.assemble(params, carried, jax.random.key(0), train=train)

    @property
    def devices(self) -> list[jax.Device]:
        """The devices of the model, in all processes."""
        return list(self._context.placement.devices)

    def place(self, batch: Any) -> Any:
        """Put a batch on the devices of the model."""
        return self._context.placement.place(batch)

    @property
    def shard(self) -> tuple[int, int]:
        """The part of every batch that this process reads, (index, count)."""
        return self._context.processes.shard

    def step_memory(self, batch: Any) -> StepMemory:
        """Return the memory that a training step needs on each device; the step is compiled, and does not run.

        Args:
          batch: a `Batch`, the part of this process.

        Raises:
          NotCompiledError: if the model is not compiled.
          CompileError: if the compiler does not plan memory, as with dispatch="eager".
        """
        if self._memory is None:
            raise NotCompiledError("The model was not compiled. Call model.compile(...) before step_memory.")
        return self._memory(batch)[0]

    def restore(self) -> None:
        """Set the model's state and what it had learned back to this snapshot.

        Raises:
          CompileError: if the model was compiled since.
          BusyError: if another thread trains the model.
        """
        with self._context.state.training("snapshot.restore"):
            self._restore()

    def training(self, method: str) -> AbstractContextManager[None]:
        """Return a block in which no other thread can train the model.

        Args:
          method: the name of the function that trains, for the message in another thread.

        Raises:
          BusyError: if another thread trains the model.
        """
        return self._context.state.training(method)

    def check_trainable(self, method: str) -> None:
        """Raise `ModuleError` if the model has no parameter to train; `method` is the function that trains."""
        self._context.check_trainable(method)

    def _restore(self) -> None:
        if self._context.replaced:
            raise CompileError(
                "The model was compiled after the snapshot was taken, so its optimizer and its steps are others. Take "
                "a snapshot after model.compile(...); to set the weights alone, use model.set_weights(...)."
            )
        state = self._context.state
        state.replace(self.leaves)
        state.epoch = self.epoch
        state.publish()
        if self._rate is not None:
            self._rate.restored(self._asked_rate)
        self._context.learned.put_facts(self.facts)
