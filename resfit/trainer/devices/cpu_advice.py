"""The suggestion of `resfit[cpu]`, once, to a fit on a CPU that it would make faster."""

import functools
import logging
import math
from typing import Any

from flax import nnx

from resfit.backends import onednn
from resfit.callbacks import Callback

_log = logging.getLogger("resfit")


class CpuAdvice(Callback):
    """A callback that suggests `resfit[cpu]` after the first compilation, if the network is large enough for oneDNN.

    Args:
      module: that is trained.
      batch_size: of the fit.
      example: returns an example of the inputs, once one was seen.
    """

    def __init__(self, module: nnx.Module, batch_size: int, example: Any) -> None:
        self._module, self._batch_size, self._example = module, batch_size, example

    def on_compile_end(self, what: str) -> None:
        if largest_first(self._module, self._example(), self._batch_size) >= onednn.WORTH_A_CALL:
            _suggest()


def largest_first(module: nnx.Module, example: Any, batch_size: int) -> int:
    """Return the multiply-adds of the largest convolution of a batch of images; 0 if none reads images.

    The later convolutions of a network are larger as a rule. To know them needs a trace.
    """
    shape: tuple[int, ...] = tuple(getattr(example, "shape", ()))
    if len(shape) != 3:
        return 0
    height, width, channels = shape
    found = 0
    for _, layer in nnx.iter_modules(module):
        if isinstance(layer, nnx.Conv) and len(layer.kernel.shape) == 4 and layer.kernel.shape[2] == channels:
            strides = layer.strides if isinstance(layer.strides, tuple | list) else (layer.strides or 1,) * 2
            pixels = math.ceil(height / strides[0]) * math.ceil(width / strides[1])
            found = max(found, batch_size * pixels * math.prod(layer.kernel.shape))
    return found


@functools.cache
def _suggest() -> None:
    _log.warning(
        "The convolutions of this network would be faster on this CPU with oneDNN: pip install -e '.[cpu]' in the "
        "folder of resfit. docs/cpu.md has measurements. compile(cpu_kernels='xla') keeps XLA without this line."
    )
