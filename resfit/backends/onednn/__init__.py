"""Convolutions by oneDNN and BatchNorms by native code for CPUs, if the extra `resfit[cpu]` is installed.

Networks do not know of them: `Convolve` replaces `jax.lax.conv_general_dilated` in the layers of a module, and
`Normalize` the arithmetic of a BatchNorm in training. XLA computes what it computes faster.
"""

import functools
import logging

from resfit._utils.suggest import did_you_mean
from resfit.backends.onednn.bridge import connect
from resfit.backends.onednn.convolution import Convolve
from resfit.backends.onednn.fusing import fused
from resfit.backends.onednn.library import Unavailable
from resfit.backends.onednn.norm import Normalize
from resfit.backends.onednn.norm_fusing import fused_norms
from resfit.backends.onednn.norm_library import available as has_norms
from resfit.errors import CompileError

__all__ = [
    "CHOICES",
    "Convolve",
    "Normalize",
    "chosen",
    "described",
    "fused",
    "fused_norms",
    "has_norms",
    "why_not",
]

CHOICES = ("auto", "xla", "onednn")

_log = logging.getLogger("resfit")


def chosen(choice: str, platform: str, *, compiled: bool = True) -> bool:
    """Return True if steps use oneDNN.

    Args:
      choice: "auto": if it is available; "onednn": always; "xla": never.
      platform: of the devices, such as "cpu".
      compiled: True if steps are compiled. Otherwise "auto" means XLA.

    Raises:
      CompileError: for another choice, or if "onednn" is not available.
    """
    if choice not in CHOICES:
        raise CompileError(
            f"Unknown cpu_kernels {choice!r}. Expected one of {list(CHOICES)}.{did_you_mean(choice, CHOICES)}"
        )
    if choice == "xla" or (choice == "auto" and (platform != "cpu" or not compiled)):
        return False
    reason = why_not() if platform == "cpu" else f"the devices are of the platform {platform!r}"
    if reason is None:
        return True
    if choice == "onednn":
        raise CompileError(
            f"compile got cpu_kernels='onednn', which cannot be used here: {reason}. Remove this cause, or leave "
            "cpu_kernels at 'auto', which falls back to XLA."
        )
    return False


@functools.cache
def why_not() -> str | None:
    """Return the reason why oneDNN is not available in this process, and log it once; None if it is available."""
    try:
        connect()
    except Unavailable as error:
        level = logging.INFO if error.expected else logging.WARNING
        _log.log(level, "Convolutions on the CPU use XLA: %s.", error)
        return str(error)
    return None


def described(*, norms: bool = False) -> str:
    """Return version and number of threads of the library in words. Call it only if oneDNN is available.

    Args:
      norms: True if native code also computes BatchNorms (default False).
    """
    return f"{connect().library}{', native BatchNorm' if norms else ''}"
