"""The memory of a compiled step on each device, as XLA planned it. Nothing runs."""

from typing import Any, NamedTuple

from resfit.errors import CompileError


class StepMemory(NamedTuple):
    """Bytes on each device while a step runs.

    Attributes:
      arguments: state, metric sums and batch.
      outputs: new state, new sums and loss.
      aliased: the part of the outputs that takes the place of donated arguments.
      temporary: everything else that the step holds: activations for the backward pass, gradients, scratch memory.
    """

    arguments: int
    outputs: int
    aliased: int
    temporary: int

    @property
    def peak(self) -> int:
        """The sum of all parts, with aliased memory counted once.

        Temporary memory is allocated as a whole while a step runs, so a device must have the sum free. (XLA's figure of
        the same name leaves out temporary memory on a CPU.)
        """
        return self.arguments + self.outputs - self.aliased + self.temporary


def step_memory(executable: Any) -> StepMemory:
    """Return the memory that an executable takes.

    Args:
      executable: from `CompiledStep.prepare`.

    Raises:
      CompileError: if nothing was compiled (dispatch="eager"), or the device's compiler does not plan memory.
    """
    analysis = executable.memory_analysis() if hasattr(executable, "memory_analysis") else None
    if analysis is None:
        raise CompileError(
            f"There is no plan of the training step's memory: got a {type(executable).__name__}. Expected a compiled "
            'step, on a device whose compiler plans memory. Compile with another dispatch than "eager", and leave '
            "jax.disable_jit."
        )
    return StepMemory(
        analysis.argument_size_in_bytes,
        analysis.output_size_in_bytes,
        analysis.alias_size_in_bytes,
        analysis.temp_size_in_bytes,
    )
