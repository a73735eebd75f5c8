"""Programs that were compiled in this process: an equal one is never compiled again, whoever asks for it."""

import collections
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from resfit.errors import CompileError

_PROGRAMS: collections.OrderedDict[Any, Callable[..., Any]] = collections.OrderedDict()
_MOST = 64

# Rematerialisation and slices of a batch hold parts of a program apart by optimization barriers. XLA's compiler for
# CPUs, in jaxlib 0.10.2, takes these out too early: what is computed again becomes one with what was computed before
# and is kept, and no memory is saved. It can leave them in, as later ones (0.12) do by themselves.
_KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


class Program(NamedTuple):
    """A compiled program.

    Attributes:
      run: the executable.
      digest: of its text, the same in every process; "" if the text does not show all that it does.
    """

    run: Callable[..., Any]
    digest: str


def compiled(lowered: Any, devices: Sequence[jax.Device], options: Mapping[str, Any] | None = None) -> Program:
    """The executable of a lowered program: the one that an equal program got before, or a new one.

    Three seeds of one network, each with its own Model and optimizer, thus cost one compilation.

    Args:
      lowered: what `jax.jit(...).lower(...)` returned.
      devices: it will run on.
      options: XLA's, by name.

    Raises:
      CompileError: if XLA does not know an option, or not its value.
    """
    options = dict(options or {})
    text = lowered.as_text()
    if "optimization_barrier" in text and devices[0].platform == "cpu":
        options = _KEEP_BARRIERS | options
    program = hashlib.sha256(text.encode()).hexdigest()
    if "callback" in text:  # calls a Python function that the text does not show
        return Program(_compile(lowered, options), "")
    key = (program, lowered.in_tree, lowered.out_tree, tuple(devices), tuple(sorted(options.items())))
    if key not in _PROGRAMS:
        _PROGRAMS[key] = _compile(lowered, options)
        if len(_PROGRAMS) > _MOST:
            _PROGRAMS.popitem(last=False)
    _PROGRAMS.move_to_end(key)
    return Program(_PROGRAMS[key], program)


def _compile(lowered: Any, options: dict[str, Any]) -> Callable[..., Any]:
    try:
        executable: Callable[..., Any] = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if options and ("compile option" in str(error) or "While setting option" in str(error)):
            raise CompileError(
                f"compile got compiler_options={options}, and XLA says: {error}. Expected options that this version of "
                "XLA has for this kind of device."
            ) from error
        raise
    return executable
