"""Settings of glibc by which steps on a CPU use the same memory again.

XLA allocates the buffers of a step in each step. By default glibc takes large buffers from the kernel and returns them
at once, so that every step causes millions of page faults, which take up to a third of its time. While fit, evaluate or
predict runs, glibc keeps the memory. Soon after, glibc returns all of it.
"""

import contextlib
import ctypes
import functools
import importlib.util
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

_log = logging.getLogger("resfit")

SWITCH = "RESFIT_MALLOC"  # "system" leaves the allocator alone

# Options of malloc.h, with their values while a fit runs and after it. The latter are glibc's own. Its thresholds are
# those to which glibc itself raises them in a process that frees large blocks.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8
_KEEP = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 64 * 2**20))
_LET_GO = ((_MMAP_MAX, 65536), (_TRIM_THRESHOLD, 64 * 2**20), (_TOP_PAD, 0), (_MMAP_THRESHOLD, 32 * 2**20))

# A call within this time causes no page faults. Interactive work, and training and evaluation in alternation, call
# again within it.
SECONDS_UNTIL_GIVEN_BACK = 30.0

_lock = threading.Lock()
_running = 0
_give_back_at = 0.0  # of `time.monotonic`
_giving_back: threading.Timer | None = None


def share_one_arena() -> None:
    """Make all new threads allocate in one arena, if JAX computes on the CPU only.

    A thread's own arena holds no block above 64 MiB, and the temporary memory of a step is one block. In spite of
    `keeping_memory`, glibc would take it from the kernel and return it in every step. XLA's threads choose their arena
    when the first computation starts, so the import of resfit calls this function. The setting cannot be undone.
    """
    libc = _glibc_if_wanted()
    if libc is not None and _computes_on_cpu_alone():
        _set(libc, ((_ARENA_MAX, 1),))


def _computes_on_cpu_alone() -> bool:
    """Return True if JAX has no other platform. Does not start JAX's devices."""
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]  # known to no type checker
    if platforms is not None:
        return bool(platforms == "cpu")
    return all(importlib.util.find_spec(package) is None for package in ("jax_plugins", "libtpu"))


@contextlib.contextmanager
def keeping_memory(device_platform: str) -> Iterator[None]:
    """Keep freed memory in the process inside the block, and return it half a minute after the last block.

    Does nothing unless the device is a CPU, the C library is glibc, and the environment variable RESFIT_MALLOC is not
    "system". Blocks can be nested and run in several threads.

    Args:
      device_platform: of the devices that the block computes on, such as "cpu".
    """
    libc = _glibc_if_wanted() if device_platform == "cpu" else None
    if libc is None:
        yield
        return
    _enter(libc)
    try:
        yield
    finally:
        _leave(libc)


def return_memory() -> None:
    """Return freed memory of the process to the system; with another C library than glibc this is a no-op."""
    libc = _glibc_if_wanted()
    if libc is not None:
        libc.malloc_trim(0)


def _enter(libc: Any) -> None:
    global _running
    with _lock:
        _running += 1
        if _running == 1 and _giving_back is None:  # else the settings are still those of the block
            _set(libc, _KEEP)


def _leave(libc: Any) -> None:
    global _running, _give_back_at
    with _lock:
        _running -= 1
        _give_back_at = time.monotonic() + SECONDS_UNTIL_GIVEN_BACK
        if _running == 0 and _giving_back is None:  # to start a thread in each call would cost as much as a step
            _wait(libc, SECONDS_UNTIL_GIVEN_BACK)


def _wait(libc: Any, seconds: float) -> None:
    global _giving_back
    _giving_back = threading.Timer(seconds, _give_back, (libc,))
    _giving_back.daemon = True  # the process can end earlier
    _giving_back.start()


def _give_back(libc: Any) -> None:
    global _giving_back
    with _lock:
        _giving_back = None
        if _running:  # its end starts another timer
            return
        rest = _give_back_at - time.monotonic()
        if rest > 0:  # another block ran since
            _wait(libc, rest)
            return
        _set(libc, _LET_GO)
        libc.malloc_trim(0)


def _after_fork_in_child() -> None:
    """Return the memory in a forked process, where the parent's timer does not run and its lock can be held."""
    global _lock, _running, _giving_back
    keeps = _running > 0 or _giving_back is not None
    _lock, _running, _giving_back = threading.Lock(), 0, None
    if keeps:
        _set(_glibc(), _LET_GO)


os.register_at_fork(after_in_child=_after_fork_in_child)


def _set(libc: Any, options: tuple[tuple[int, int], ...]) -> None:
    for option, value in options:
        if not libc.mallopt(option, value):
            _log.info("The C library does not accept mallopt(%d, %d); the setting stays unchanged.", option, value)


def _glibc_if_wanted() -> Any:
    return None if os.environ.get(SWITCH) == "system" else _glibc()


@functools.cache
def _glibc() -> Any:
    """Return the C library of this process, or None if it is not glibc."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL(None)
    functions: tuple[Callable[..., Any] | None, ...] = tuple(
        getattr(libc, name, None) for name in ("mallopt", "malloc_trim")
    )
    return None if None in functions else libc


share_one_arena()  # XLA's threads can start with the next line of the user's script
