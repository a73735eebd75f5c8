"""Switches of JAX that the user turned on, and which calls of resfit suspend."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

_log = logging.getLogger("resfit")

_P = ParamSpec("_P")
_R = TypeVar("_R")
_GUARDS = tuple(f"jax_transfer_guard{way}" for way in ("", "_host_to_device", "_device_to_device", "_device_to_host"))


@contextlib.contextmanager
def suspended() -> Iterator[None]:
    """Suspend `jax.transfer_guard` and `jax.set_mesh`.

    A call of resfit moves data to devices on purpose, and makes the mesh of its run itself.
    """
    with contextlib.ExitStack() as stack:
        if any(getattr(jax.config, guard) not in (None, "allow", "log") for guard in _GUARDS):
            stack.enter_context(jax.transfer_guard("allow"))
        if not jax.sharding.get_abstract_mesh().empty:
            stack.enter_context(jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())))
        yield


def suspending(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return a function that runs inside `suspended`."""

    @functools.wraps(function)
    def call(*arguments: _P.args, **named: _P.kwargs) -> _R:
        with suspended():
            return function(*arguments, **named)

    return call


def suspending_each(function: Callable[_P, Iterator[_R]]) -> Callable[_P, Iterator[_R]]:
    """Return a generator function that runs inside `suspended`, and not while its caller uses a value."""

    @functools.wraps(function)
    def iterate(*arguments: _P.args, **named: _P.kwargs) -> Iterator[_R]:
        iterator, end = iter(function(*arguments, **named)), object()
        try:
            while True:
                with suspended():
                    value: Any = next(iterator, end)
                if value is end:
                    return
                yield value
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    return iterate


@contextlib.contextmanager
def implicit_promotion() -> Iterator[None]:
    """Let code of other libraries promote dtypes and ranks, which `jax.numpy_dtype_promotion("strict")` refuses."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def jit_disabled() -> bool:
    """Return True under `jax.disable_jit`, and warn once that nothing is compiled."""
    if not jax.config.jax_disable_jit:  # type: ignore[attr-defined]  # in the docs of JAX, not in its types
        return False
    _warn_of_slow_steps()
    return True


@functools.cache
def _warn_of_slow_steps() -> None:
    _log.warning("jax.disable_jit is on: steps run operation by operation, as with dispatch='eager', and slowly.")
