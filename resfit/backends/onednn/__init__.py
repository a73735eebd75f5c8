"""Kernels for CPUs: convolutions by oneDNN, where the extra `resfit[cpu]` is installed and they are faster than XLA's.

Nobody needs to know of them: `Convolve` stands in for `jax.lax.conv_general_dilated` in the layers of a network.
"""

import functools
import logging

from resfit._utils.suggest import did_you_mean
from resfit.backends.onednn.bridge import connect
from resfit.backends.onednn.convolution import Convolve
from resfit.backends.onednn.fusing import fused
from resfit.backends.onednn.library import Unavailable
from resfit.errors import CompileError

__all__ = ["CHOICES", "Convolve", "chosen", "described", "fused", "why_not"]

CHOICES = ("auto", "xla", "onednn")

_log = logging.getLogger("resfit")


def chosen(choice: str, platform: str, *, compiled: bool = True) -> bool:
    """Whether oneDNN is to be used.

    Args:
      choice: "auto", where it can be; "onednn"; or "xla", not.
      platform: of the devices, such as "cpu".
      compiled: whether steps are compiled; without, "auto" is XLA.

    Raises:
      CompileError: for another choice, or for "onednn" where it cannot be used.
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
            f"compile got cpu_kernels='onednn', which cannot be used here: {reason}. Mend that, or leave cpu_kernels "
            "at 'auto', which uses XLA instead."
        )
    return False


@functools.cache
def why_not() -> str | None:
    """The reason why oneDNN cannot be used in this process, which is logged once; None if it can."""
    try:
        connect()
    except Unavailable as error:
        level = logging.INFO if error.expected else logging.WARNING
        _log.log(level, "Convolutions on the CPU are XLA's: %s.", error)
        return str(error)
    return None


def described() -> str:
    """The library in words: its version, and on how many threads it runs. Only where it can be used."""
    return str(connect().library)
