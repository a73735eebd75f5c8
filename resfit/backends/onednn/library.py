"""The shared library of oneDNN's C interface, found and checked before its first use, by ctypes."""

import contextlib
import ctypes
import functools
import importlib.metadata
import logging
import os
import pathlib
import platform
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

# Packages with the library, both by its authors. `opened` rejects the runtime of the second one.
PACKAGES = ("onednn-cpu-gomp", "onednn")
NOT_INSTALLED = f"{PACKAGES[0]} is not installed: pip install 'resfit[cpu]'"
FILE = "libdnnl.so.3"
RUNTIME = "libgomp.so.1"
MAJOR = 3  # of the C interface: the functions below have had the same meaning since 3.0
LIMIT = pathlib.Path("/sys/fs/cgroup/cpu.max")  # the processor time that a container may use, and its period
# Variables by which a user chooses the processors of OpenMP's threads.
_BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")
_OPENMP = 2  # of dnnl_cpu_runtime_t: the library uses OpenMP's threads

_log = logging.getLogger("resfit")

_FUNCTIONS = (
    "dnnl_version",
    "dnnl_engine_create",
    "dnnl_stream_create",
    "dnnl_stream_wait",
    "dnnl_memory_desc_create_with_strides",
    "dnnl_memory_desc_create_with_tag",
    "dnnl_memory_desc_equal",
    "dnnl_memory_desc_get_size",
    "dnnl_memory_desc_destroy",
    "dnnl_memory_create",
    "dnnl_memory_set_data_handle",
    "dnnl_memory_destroy",
    "dnnl_primitive_attr_create",
    "dnnl_primitive_attr_destroy",
    "dnnl_primitive_attr_set_scratchpad_mode",
    "dnnl_primitive_attr_set_post_ops",
    "dnnl_post_ops_create",
    "dnnl_post_ops_append_binary",
    "dnnl_post_ops_append_prelu",
    "dnnl_post_ops_append_sum",
    "dnnl_post_ops_destroy",
    "dnnl_convolution_forward_primitive_desc_create",
    "dnnl_convolution_backward_data_primitive_desc_create",
    "dnnl_convolution_backward_weights_primitive_desc_create",
    "dnnl_reorder_primitive_desc_create",
    "dnnl_primitive_desc_query",
    "dnnl_primitive_desc_query_md",
    "dnnl_primitive_desc_destroy",
    "dnnl_primitive_create",
    "dnnl_primitive_execute",
    "dnnl_primitive_destroy",
    "omp_get_max_threads",
    "omp_set_num_threads",
    "omp_set_dynamic",
    "omp_get_thread_limit",
    "omp_get_thread_num",
    "GOMP_parallel",
)


class Unavailable(Exception):  # noqa: N818 - it is a state of the machine, not a mistake
    """The reason why oneDNN is not available here.

    Attributes:
      expected: True if nothing is wrong: the package is not installed, or made for other platforms.
    """

    def __init__(self, reason: str, *, expected: bool = False) -> None:
        super().__init__(reason)
        self.expected = expected


class Library(NamedTuple):
    """The loaded library.

    Attributes:
      functions: its C functions as attributes, each returning an int status unless said otherwise.
      version: such as "3.2.1".
      threads: the number of threads of each operation. Sums are split by it, so the last bits depend on it.
      bound: True to bind each thread to a separate processor.
    """

    functions: Any
    version: str
    threads: int
    bound: bool

    def __str__(self) -> str:
        return f"oneDNN {self.version} on {self.threads} threads"


class _Version(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
        ("patch", ctypes.c_int),
        ("hash", ctypes.c_char_p),
        ("cpu_runtime", ctypes.c_uint),
        ("gpu_runtime", ctypes.c_uint),
    )


@functools.cache
def load() -> Library:
    """Load the library, once in a process.

    Raises:
      Unavailable: with the reason.
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise Unavailable(
            f"oneDNN is used on Linux on x86-64 only, and this is {platform.system()} on {platform.machine()}",
            expected=True,
        )
    return opened(find())


def find() -> pathlib.Path:
    """Return the library's file in the first installed package.

    Raises:
      Unavailable: if no package is installed, or its file is gone.
    """
    for name in PACKAGES:
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name == FILE:
                path = pathlib.Path(str(file.locate())).resolve()
                if path.is_file():
                    return path
                raise Unavailable(f"the package {name} is installed and its {path} is missing: install it again")
        raise Unavailable(f"the package {name} is installed and brings no {FILE}: expected version 2023 or later")
    raise Unavailable(NOT_INSTALLED, expected=True)


def opened(path: pathlib.Path) -> Library:
    """Load a library from its file and check it.

    Raises:
      Unavailable: if the file cannot be loaded, or is not oneDNN 3.x for OpenMP.
    """
    try:
        with _sleeping_threads():
            functions = ctypes.CDLL(str(path))
    except OSError as error:
        hint = "; Debian and Ubuntu have it as the package libgomp1" if "libgomp" in str(error) else ""
        raise Unavailable(f"{path} cannot be loaded: {error}{hint}") from error
    missing = [name for name in _FUNCTIONS if not hasattr(functions, name)]
    if missing:
        raise Unavailable(f"{path} has no {', '.join(missing)}: expected oneDNN {MAJOR}.x")
    functions.dnnl_version.restype = ctypes.POINTER(_Version)
    functions.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
    functions.dnnl_primitive_desc_query_md.restype = ctypes.c_void_p
    version = _checked_version(path, functions.dnnl_version())
    # If an operation gets fewer threads than it was split for, it waits forever.
    threads = min(_threads(), functions.omp_get_thread_limit())
    # Fewer threads than processors would all be on the first ones, together with those of other processes.
    chosen = any(name in os.environ for name in _BINDING)
    return Library(functions, version, threads, not chosen and threads == len(os.sched_getaffinity(0)))


def _checked_version(path: pathlib.Path, pointer: Any) -> str:
    """Return the version of the library.

    Raises:
      Unavailable: if the version or the runtime is not supported.
    """
    if not pointer:
        raise Unavailable(f"{path} does not report its version")
    found = pointer.contents
    version = f"{found.major}.{found.minor}.{found.patch}"
    if found.major != MAJOR:
        raise Unavailable(f"{path} is oneDNN {version}, expected {MAJOR}.x: pip install --upgrade 'resfit[cpu]'")
    if found.cpu_runtime != _OPENMP:
        raise Unavailable(f"{path} was not built for OpenMP (its runtime is number {found.cpu_runtime})")
    return version


def _is_loaded(name: str) -> bool:
    """Return True if this process has loaded a shared library."""
    try:
        ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    return True


def _threads() -> int:
    """Return the number of processors of this process, or the number in OMP_NUM_THREADS."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told) > 0:
        return int(told)
    processors = len(os.sched_getaffinity(0))
    # A container sees all processors of its machine, but may use the time of only a few.
    try:
        quota, period = LIMIT.read_text().split()
        return min(processors, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no limit ("max"), or another version of Linux's control groups
        return processors


@contextlib.contextmanager
def _sleeping_threads() -> Iterator[None]:
    """Make OpenMP's threads sleep between two operations; by default they spin beside XLA's threads.

    The runtime reads the setting when it is loaded. A runtime that is loaded already, or the user's choice, stays.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        yield
        return
    if _is_loaded(RUNTIME):
        _log.warning(
            "Another library, such as torch, has loaded %s before oneDNN. Its threads spin between two operations and "
            "slow XLA's threads down, which can take half of the gain or all. Set OMP_WAIT_POLICY=passive in the "
            "environment.",
            RUNTIME,
        )
    os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        yield
    finally:
        del os.environ["OMP_WAIT_POLICY"]
