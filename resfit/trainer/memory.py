"""How much memory a compiled step takes on each device, as XLA planned it. Nothing is run."""

from typing import Any, NamedTuple

from resfit.errors import CompileError


class StepMemory(NamedTuple):
    """Bytes on each device while a step runs.

    Attributes:
      arguments: state, metric sums and batch.
      outputs: new state, new sums and loss.
      aliased: the part of the outputs that is written over arguments, which the step gave up.
      temporary: whatever else the step holds: activations that wait for the gradient, gradients, scratch space.
    """

    arguments: int
    outputs: int
    aliased: int
    temporary: int

    @property
    def peak(self) -> int:
        """All of it, what is aliased once.

        Temporary memory is allocated as a whole for as long as a step runs, so the sum is what a device must have free.
        (XLA has a figure of that name too, which on a CPU leaves temporary memory out.)
        """
        return self.arguments + self.outputs - self.aliased + self.temporary


def step_memory(executable: Any) -> StepMemory:
    """What an executable takes.

    Args:
      executable: what `Step.prepare` returned.

    Raises:
      CompileError: if nothing was compiled (dispatch="eager"), or the device's compiler does not tell.
    """
    analysis = executable.memory_analysis() if hasattr(executable, "memory_analysis") else None
    if analysis is None:
        raise CompileError(
            f"There is no plan of the training step's memory: got a {type(executable).__name__}. Expected a compiled "
            'step, on a device whose compiler plans its memory. Compile with another dispatch than "eager".'
        )
    return StepMemory(
        analysis.argument_size_in_bytes,
        analysis.output_size_in_bytes,
        analysis.alias_size_in_bytes,
        analysis.temp_size_in_bytes,
    )
