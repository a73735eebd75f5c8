"""The parts that training, evaluation and prediction share: state, devices, key, and the checks of each batch."""

from collections.abc import Callable
from typing import Any

import jax

from resfit.augment.resize import Resize
from resfit.data.batches import Batch, Batches
from resfit.data.device import DeviceSource
from resfit.errors import ModuleError
from resfit.trainer.device_batch import DeviceBatch
from resfit.trainer.devices.multihost import Processes, Turn
from resfit.trainer.devices.placement import Placement
from resfit.trainer.learned.facts import Learned
from resfit.trainer.loop.callback_list import CallbackList
from resfit.trainer.state.run_state import RunState
from resfit.trainer.step import OutputsShape


class LabelCheck:
    """The check of the labels of a run: of all of them once if they are at hand, else of each batch.

    Args:
      check: takes labels and the shape of the outputs; raises if they do not fit.
      labels: all of them; None if only the batches have them.

    Attributes:
      done: True if nothing remains to be checked.
    """

    def __init__(self, check: Callable[[Any, OutputsShape], None], labels: Any = None) -> None:
        self._check, self._labels = check, labels
        self.done = False

    def __call__(self, labels: Any, shape: OutputsShape) -> None:
        """Check the labels of a batch, or all of them."""
        self._check(labels if self._labels is None else self._labels, shape)
        self.done = self._labels is not None


class RunContext:
    """A state on its devices, with the key of everything random.

    Args:
      state: of the run.
      placement: the devices of the state and the batches.
      seed: of everything random inside the steps.
      learned: compares the inputs and labels of each batch with those of training.
      steps_per_execution: batches that are handed over at once.

    Attributes:
      state: of the run.
      placement: the devices of the state and the batches.
      seed: of everything random inside the steps.
      learned: the known facts about the data.
      steps_per_execution: see the argument.
      processes: of the run.
      on_device: the training data that the last `fit(cache="device")` left on the device, or None.
      replaced: True once the model was compiled again.
      key: made from the seed, on every device.
    """

    def __init__(
        self, state: RunState, placement: Placement, seed: int, learned: Learned, steps_per_execution: int = 1
    ) -> None:
        self.state, self.placement, self.seed, self.learned = state, placement, seed, learned
        self.steps_per_execution = steps_per_execution
        self.processes = Processes(placement)
        self.replaced = False
        self.on_device: DeviceSource | None = None
        self.key = placement.replicate(jax.random.key_data(jax.random.key(seed)))

    @property
    def runs_in_one_program(self) -> bool:
        """True if the steps of an execution are one program, see `trainer.several_steps`."""
        return self.steps_per_execution > 1 and self.placement.loops

    def check_trainable(self, method: str) -> None:
        """Raise if there is no parameter to train. Evaluation and prediction need none.

        Args:
          method: the function that trains, for the message.

        Raises:
          ModuleError: if the module has no parameters, or all are frozen.
        """
        patterns = ", ".join(map(repr, self.state.freeze.patterns))
        if not self.state.layout.n_params and patterns:
            raise ModuleError(
                f"Every parameter is frozen by freeze({patterns}), so {method} has nothing to train. Call freeze with "
                "fewer patterns, and compile again."
            )
        if not self.state.layout.n_params:
            raise ModuleError(
                f"{type(self.state.module).__name__} has no floating-point nnx.Param, so {method} has nothing to "
                "train. Expected layers, or nnx.Param attributes, that are made in its __init__; a Linen module in "
                "nnx.bridge.ToNNX has them after .lazy_init(x)."
            )

    def inference_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return a step without gradients, in which CPU kernels may fuse a convolution with what follows it."""
        convolutions = self.state.convolutions
        # An eager step runs as it is written.
        return step if convolutions is None or self.placement.kind == "eager" else convolutions.fused(step)

    def turn(self, batch: Batch, wanted: Callable[[Batch], Any] | None = None) -> Turn:
        """Place a batch on its own: of every process, its part."""
        return next(self.processes.turns([batch], wanted or for_step))

    def check_inputs(self, turn: Turn, *, trained: bool = False) -> None:
        """Compare the inputs of a batch with those of training; after a step, remember them."""
        if turn.host is not None:
            self.learned.check_inputs(turn.host.x, trained)

    def label_check(self, data: Batches) -> LabelCheck:
        """Return the check of the labels of these data."""
        return LabelCheck(self.learned.check_labels, data.labels)


def for_step(batch: Batch, resize: Resize | None = None) -> DeviceBatch:
    """Return the arrays of a batch that a training or evaluation step takes; a training step resizes its images."""
    return DeviceBatch(batch.x, batch.y, batch.weight, batch.mask, batch.origin, resize)


def check_before(step: Callable[..., Any], turn: Turn, check: LabelCheck) -> None:
    """Check the labels of a batch before its step runs, if the step is compiled."""
    if not check.done and turn.host is not None and isinstance(step, jax.stages.Compiled):
        results: Any = step.out_tree
        check(turn.host.y, results.children()[-1].node_data()[1])


def check_after(step: Callable[..., Any], turn: Turn, check: LabelCheck, shape: OutputsShape) -> None:
    """Check the labels of a batch after its step ran, if the step is not compiled."""
    if not check.done and turn.host is not None and not isinstance(step, jax.stages.Compiled):
        check(turn.host.y, shape)


def announce(callbacks: CallbackList, what: str) -> Callable[[bool], None]:
    """Return a function that fires the compile hooks: with True before, with False after a compilation."""
    return lambda begins: callbacks.fire("on_compile_begin" if begins else "on_compile_end", what)


def quiet(begins: bool) -> None:
    """Fire no hook."""
