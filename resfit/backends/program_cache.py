"""A cache of compiled programs: a process traces and compiles equal programs once.

The cache finds equal functions in two ways: before the tracing, by everything that decides the program (`traced`), if
it has a description, see `by_value`; and after the tracing, by the text of the program (`compiled`).
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

from resfit._utils.jax_switches import jit_disabled
from resfit.backends.by_value import NotByValueError, by_value
from resfit.backends.cpu_barrier import barrier_options, tracing_for
from resfit.errors import CompileError

_log = logging.getLogger("resfit")

# Settings of JAX that its compiler reads and the text of a program does not show.
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
# Measured on a CPU: 8 to 11 kB of memory for each operation. A constant takes two characters of the text a byte.
_BYTES_OF_OPERATION = 10_000
_KEYS = 4  # kept for each program: the key of a deep network takes megabytes


@dataclasses.dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Program:
    """A compiled program.

    Attributes:
      run: the executable.
      digest: SHA-256 of its text, "+", and SHA-256 of the paths of the arguments that it reads, which the text does not
        name. Equal in every process. "" if the text does not show everything that the program does.
      size: estimated bytes of memory.
    """

    run: Callable[..., Any]
    digest: str
    size: int


class Programs:
    """The known programs.

    A program is known as long as something holds it. The cache itself holds the programs that were used last, up to a
    number of bytes, so that the next model of the same architecture finds them after the previous one is gone.

    Args:
      limit: estimated bytes that the cache itself holds.

    Attributes:
      traced: the programs by their keys before the tracing.
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
        """Add a program by its key after the tracing.

        Args:
          key: equal for equal programs only.
          program: compiled.
          hold: True if the cache itself may hold it. Otherwise it is known only while something else holds it.
        """
        with self._lock:
            self._known[key] = program
            if hold:
                self._recent[key] = program
                while self.size > self._limit:
                    self._recent.popitem(last=False)

    def remember(self, key: Hashable, program: Program) -> None:
        """Add a program by its key before the tracing.

        Only the last few keys are kept: a class that is made again for each model gives another key each time.
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
    """Return the program of a function for arguments: the known one of an equal function, or a new one.

    A function that logs a warning while it is traced is traced again each time, so that each model logs its warnings.

    Args:
      jitted: the result of `jax.jit`.
      arguments: of the call: pytrees of arrays.
      devices: the devices that the program runs on.
      options: XLA's compiler options by name.
      how: the other arguments of `jax.jit`.

    Raises:
      CompileError: see `compiled`.
    """
    if jit_disabled():
        return Program(jitted.__wrapped__, "", 0)
    key = _key(jitted, arguments, devices, options, how)
    program = None if key is None else PROGRAMS.traced.get(key)
    if program is None:
        with _listening() as heard, tracing_for(device.platform for device in devices):
            lowered = jitted.lower(*arguments)
        program = compiled(lowered, devices, options)
        if key is not None and program.digest and not heard:
            PROGRAMS.remember(key, program)
    return program


def _key(jitted: Any, arguments: Any, devices: Any, options: Any, how: Any) -> Hashable | None:
    """Return everything that decides a program; None if a part of it has no description."""
    leaves, structure = jax.tree.flatten(arguments)
    try:
        decided = by_value((jitted.__wrapped__, how, tuple(devices), options, structure, _of_flax()))
    except NotByValueError as reason:
        _log.debug("The step is traced again for each model: %s is not compared by value.", reason)
        return None
    # All settings of JAX, because its own key leaves some out; and whether a warning would be logged.
    settings = trace_context(), tuple(state.value for state in config_states.values()), _settings()
    return decided, tuple(map(_kind, leaves)), settings, _log.isEnabledFor(logging.WARNING)


def _of_flax() -> Any:
    """Return the settings that the code of Flax reads: flags, and the contexts of this thread."""
    flags: Any = flax.config
    return flags._values, vars(VARIABLE_CONTEXT), get_logical_axis_rules(), tuple(_global_interceptor_stack)


def _kind(array: Any) -> Hashable:
    placed = (
        (getattr(array, "weak_type", False), array.sharding, array.committed) if isinstance(array, jax.Array) else None
    )
    return array.shape, array.dtype, placed


@contextlib.contextmanager
def _listening() -> Iterator[list[logging.LogRecord]]:
    """Collect the warnings that resfit logs in this thread inside the context."""
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
    """Return the program of a lowered function: the known one of an equal function, or a new one.

    Three seeds of one network, each with its own Model and optimizer, cost one compilation.

    Args:
      lowered: the result of `jax.jit(...).lower(...)`.
      devices: the devices that the program runs on.
      options: XLA's compiler options by name.

    Raises:
      CompileError: if XLA does not know an option or rejects its value.
    """
    text = lowered.as_text()
    options = barrier_options(text, devices) | dict(options or {})
    size = text.count("\n") * _BYTES_OF_OPERATION + len(text) // 2
    lowering = lowered._lowering
    # The text shows neither Python functions that a program calls nor constants that are handed to it.
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
    """Return the part of a digest that covers the text alone. Early checkpoints hold only this part."""
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
    """Return the types of all arguments and results of an executable, which the text does not show."""
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
    """Return True if a tree structure holds no object of the user, which the cache would keep alive."""
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
                f"compile got compiler_options={options}, and XLA raised: {error}. Expected options that this version "
                "of XLA has for this kind of device."
            ) from error
        raise
    return executable
