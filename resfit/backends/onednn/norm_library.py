"""The native code of batch normalization: `norm.c`, compiled once for the processor of this machine."""

import functools
import logging
import pathlib
from typing import Any

import jax

from resfit.backends.cpu_flags import cpu_flags
from resfit.backends.onednn.bridge import built, folder, found_compiler, loaded
from resfit.backends.onednn.library import Unavailable

SOURCE = pathlib.Path(__file__).parent / "norm.c"
FORWARD, BACKWARD = "resfit_norm_forward", "resfit_norm_backward"
# Without contraction, ReLU's mask is the same in both directions, and every compiler rounds in the same places.
_OPTIONS = ("-O3", "-march=native", "-ffp-contract=off")

_log = logging.getLogger("resfit")


@functools.cache
def available() -> bool:
    """Return True if the code can be used in this process. Otherwise log the reason once."""
    try:
        _register(loaded(_built(folder())))
    except Unavailable as error:
        _log.info("BatchNorm on the CPU uses XLA: %s.", error)
        return False
    return True


def _built(where: pathlib.Path) -> pathlib.Path:
    """Return the compiled code in a folder. Compiles it if it is not there.

    Raises:
      Unavailable: if there is no compiler for vector units, or it fails.
    """
    # A home folder can be shared by different machines.
    return built(where, SOURCE, _command, " ".join(sorted(cpu_flags())))


def _command() -> list[str]:
    compiler = found_compiler()
    if compiler is None:
        raise Unavailable("no C compiler for vector units was found: install gcc or clang")
    return [compiler, *_OPTIONS, "-fPIC", "-pthread"]


def _register(native: Any) -> None:
    for target in (FORWARD, BACKWARD):
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(native, target)), platform="cpu")
