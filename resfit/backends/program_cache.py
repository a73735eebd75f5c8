"""Cache of compiled programs: what is equal to one that is still held is not traced or compiled again in this process.

A function is known as equal in two ways: before it is traced, by what decides it (`traced`), where all of that is
understood, see `by_value`; and after it is traced, by the text of its program (`compiled`).
"""

import collections
import contextlib
import dataclasses
import hashlib
import logging
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import flax
import jax
from flax.core.spmd import get_logical_axis_rules
from flax.linen.module import _global_interceptor_stack
from flax.nnx.variablelib import VARIABLE_CONTEXT
from jax._src.config import config_states, trace_context

from resfit.backends.by_value import NotByValueError, by_value
from resfit.errors import CompileError

_log = logging.getLogger("resfit")

# Rematerialization and slices of a batch hold parts of a program apart by optimization barriers. XLA's compiler for
# CPUs, in jaxlib 0.10.2, takes these out too early: what is computed again becomes one with what was computed before
# and is kept, and no memory is saved. It can leave them in, as later ones (0.12) do by themselves.
_KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}

# Settings of JAX that its compiler reads and that the text of a program does not show.
_SETTINGS = (
    "jax_disable_most_optimizations",
    "jax_exec_time_optimization_effort",
    "jax_memory_fitting_effort",
    "jax_optimization_level",
    "jax_memory_fitting_level",
    "jax_compiler_enable_remat_pass",
    "jax_use_shardy_partitioner",
    "jax_xla_profile_version",
    "jax_enable_pgle",
)
# Measured on a CPU: 8 to 11 kB of memory for each operation. A constant stands in the text as two characters a byte.
_BYTES_OF_OPERATION = 10_000
_KEYS = 4  # for each program. A key of a deep network takes megabytes


@dataclasses.dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Program:
    """A compiled program.

    Attributes:
      run: the executable.
      digest: SHA-256 of its text, "+", and SHA-256 of the paths of the arguments that it reads, which the text does not
        name. The same in every process. "" if the text does not show all that the program does.
      size: estimated bytes of memory.
    """

    run: Callable[..., Any]
    digest: str
    size: int


class Programs:
    """Programs by what decides them.

    A program is found for as long as somebody holds it. The cache itself holds the programs that were used last, up to
    a number of bytes, so that the next model of the same architecture finds them after the previous one is gone.

    Args:
      limit: bytes that the cache itself holds, estimated.

    Attributes:
      traced: the programs by what decides them before they are traced.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._known: weakref.WeakValueDictionary[Hashable, Program] = weakref.WeakValueDictionary()
        self._recent: collections.OrderedDict[Hashable, Program] = collections.OrderedDict()
        self.traced: weakref.WeakValueDictionary[Hashable, Program] = weakref.WeakValueDictionary()
        self._keys: weakref.WeakKeyDictionary[Program, collections.deque[Hashable]] = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def size(self) -> int:
        """Estimated bytes of the programs that the cache itself holds."""
        return sum(program.size for program in self._recent.values())

    def find(self, key: Hashable) -> Program | None:
        """Return the program of a key, or None."""
        with self._lock:
            program = self._known.get(key)
            if key in self._recent:
                self._recent.move_to_end(key)
            return program

    def add(self, key: Hashable, program: Program, *, hold: bool) -> None:
        """Make a program known.

        Args:
          key: equal for equal programs only.
          program: compiled.
          hold: whether the cache itself may hold it. Otherwise it is known only while somebody else holds it.
        """
        with self._lock:
            self._known[key] = program
            if hold:
                self._recent[key] = program
                while self.size > self._limit:
                    self._recent.popitem(last=False)

    def remember(self, key: Hashable, program: Program) -> None:
        """Make a program known by what decides it before it is traced.

        The last few such keys are kept: a class that is made anew for each model makes another key each time.
        """
        with self._lock:
            if key not in self.traced:
                keys = self._keys.setdefault(program, collections.deque())
                if len(keys) == _KEYS:
                    self.traced.pop(keys.popleft(), None)
                keys.append(key)
                self.traced[key] = program

    def clear(self) -> None:
        """Forget all programs."""
        with self._lock:
            self._known.clear()
            self._recent.clear()
            self.traced.clear()
            self._keys.clear()


PROGRAMS = Programs(limit=256 * 2**20)


def traced(
    jitted: Any,
    arguments: tuple[Any, ...],
    devices: Sequence[jax.Device],
    options: Mapping[str, Any] | None = None,
    how: tuple[Any, ...] = (),
) -> Program:
    """Return the program of a function for arguments: that of an equal function before, or a new one.

    A function that logs a message while it is traced is traced again each time: the next model's user wants to read it.

    Args:
      jitted: what `jax.jit` returned.
      arguments: of the call: pytrees of arrays.
      devices: the devices that the program runs on.
      options: XLA's compiler options by name.
      how: the arguments that `jax.jit` had beside the function.

    Raises:
      CompileError: see `compiled`.
    """
    key = _key(jitted, arguments, devices, options, how)
    program = None if key is None else PROGRAMS.traced.get(key)
    if program is None:
        with _listening() as heard:
            lowered = jitted.lower(*arguments)
        program = compiled(lowered, devices, options)
        if key is not None and program.digest and not heard:
            PROGRAMS.remember(key, program)
    return program


def _key(jitted: Any, arguments: Any, devices: Any, options: Any, how: Any) -> Hashable | None:
    """Return what decides a program; None where that is not understood."""
    leaves, structure = jax.tree.flatten(arguments)
    try:
        decided = by_value((jitted.__wrapped__, how, tuple(devices), options, structure, _of_flax()))
    except NotByValueError as reason:
        _log.debug("The step is traced anew for each model: %s is not compared by value.", reason)
        return None
    # All settings of JAX, as its own key of what it traced leaves some out; and whether a warning would be heard.
    settings = trace_context(), tuple(state.value for state in config_states.values()), _settings()
    return decided, tuple(map(_kind, leaves)), settings, _log.isEnabledFor(logging.WARNING)


def _of_flax() -> Any:
    """Return the settings that the code of Flax reads: flags, and what contexts of this thread set."""
    flags: Any = flax.config
    return flags._values, vars(VARIABLE_CONTEXT), get_logical_axis_rules(), tuple(_global_interceptor_stack)


def _kind(array: Any) -> Hashable:
    placed = (array.weak_type, array.sharding, array.committed) if isinstance(array, jax.Array) else None
    return array.shape, array.dtype, placed


@contextlib.contextmanager
def _listening() -> Iterator[list[logging.LogRecord]]:
    """Collect what this thread logs as a warning of resfit inside the context."""
    heard: list[logging.LogRecord] = []
    thread = threading.get_ident()
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: heard.append(record) if record.thread == thread else None  # type: ignore[method-assign]
    _log.addHandler(listener)
    try:
        yield heard
    finally:
        _log.removeHandler(listener)


def compiled(lowered: Any, devices: Sequence[jax.Device], options: Mapping[str, Any] | None = None) -> Program:
    """Return the program of a lowered function: one that an equal function was compiled to before, or a new one.

    Three seeds of one network, each with its own Model and optimizer, thus cost one compilation.

    Args:
      lowered: what `jax.jit(...).lower(...)` returned.
      devices: the devices that the program runs on.
      options: XLA's compiler options by name.

    Raises:
      CompileError: if XLA does not know an option or rejects its value.
    """
    options = dict(options or {})
    text = lowered.as_text()
    if "optimization_barrier" in text and devices[0].platform == "cpu":
        options = _KEEP_BARRIERS | options
    size = text.count("\n") * _BYTES_OF_OPERATION + len(text) // 2
    lowering = lowered._lowering
    # The text does not show Python functions that a program calls, nor constants that are handed to it.
    if "callback" in text or lowering.const_args or lowering.compile_args["mut"]:
        return Program(_compile(lowered, options), "", size)
    digest = f"{_sha256(text)}+{_sha256(' '.join(_reads(lowered)))}"
    key = (digest, _signature(lowered), tuple(devices), tuple(sorted(options.items())), _settings())
    program = PROGRAMS.find(key)
    if program is None:
        program = Program(_compile(lowered, options), digest, size)
        PROGRAMS.add(key, program, hold=_is_plain(lowered.in_tree) and _is_plain(lowered.out_tree))
    return program


def _settings() -> tuple[Any, ...]:
    values = jax.config.values
    return tuple(values.get(name) for name in _SETTINGS)


def text_digest(digest: str) -> str:
    """Return the part of a digest that covers the text alone, which is all that early checkpoints hold."""
    return digest.partition("+")[0]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _reads(lowered: Any) -> list[str]:
    """Return the paths of the arguments that a program reads.

    `jax.jit` leaves the others out of the text: functions that read x["a"] and x["b"] have the same text.
    """
    kept = lowered._lowering.compile_args["kept_var_idx"]
    arguments = jax.tree_util.tree_flatten_with_path(lowered.args_info)[0]
    return [jax.tree_util.keystr(path) for i, (path, _) in enumerate(arguments) if i in kept]


def _signature(lowered: Any) -> Hashable:
    """Return how an executable is called, which the text does not show: the type of every argument and result."""
    of = lowered._lowering.compile_args
    return (
        lowered.in_tree,
        lowered.out_tree,
        tuple(of["all_args_info"].in_avals),
        tuple(of["global_out_avals"]),
        tuple(info.donated for info in jax.tree.leaves(lowered.args_info)),
        *(tuple(of[name]) for name in ("in_shardings", "out_shardings", "in_layouts", "out_layouts")),
        of["committed"],
    )


def _is_plain(tree: Any) -> bool:
    """Return whether a tree structure holds no object of the user's, which the cache would keep alive."""
    node = tree.node_data()
    if node is None:  # a leaf
        return True
    kind, keys = node
    own = kind in (tuple, list, dict, type(None)) or kind.__module__.startswith("resfit.")
    named = kind is not dict or all(isinstance(key, str | int) for key in keys)
    return own and named and all(map(_is_plain, tree.children()))


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
