"""Switches of JAX that the user turned on: which calls of resfit suspend, and what they mean for a step."""

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Collection, Iterator
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax._src.config import StateContextManager, config_ext, config_states

from resfit._utils.stopped import Stopped

_log = logging.getLogger("resfit")

_P = ParamSpec("_P")
_R = TypeVar("_R")
_C = TypeVar("_C", bound=type)
_GUARDS = tuple(f"jax_transfer_guard{way}" for way in ("", "_host_to_device", "_device_to_device", "_device_to_host"))
_NOTHING = contextlib.nullcontext()


def suspended() -> contextlib.AbstractContextManager[Any]:
    """Return a context that suspends `jax.transfer_guard` and `jax.set_mesh`.

    A call of resfit moves data to devices on purpose, and makes the mesh of its run itself.
    """
    config = jax.config
    guarded = any(getattr(config, guard) in ("disallow", "disallow_explicit") for guard in _GUARDS)
    meshed = _mesh_is_set()
    if not guarded and not meshed:
        return _NOTHING  # costs a few microseconds
    stack = contextlib.ExitStack()
    if guarded:
        stack.enter_context(jax.transfer_guard("allow"))
    if meshed:
        stack.enter_context(jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())))
    return stack


def _mesh_is_set() -> bool:
    try:
        return not jax.sharding.get_mesh().empty
    except ValueError:  # JAX is tracing: the mesh is that of the program and cannot change
        return False


def suspending(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return a function that runs inside `suspended`.

    A generator function runs inside it, and not while its caller uses a value.
    """

    @functools.wraps(function)
    def call(*arguments: _P.args, **named: _P.kwargs) -> Any:
        try:
            with suspended():
                result = function(*arguments, **named)
        except Stopped:
            raise KeyboardInterrupt from None
        return _each(result) if is_generator else result

    is_generator = inspect.isgeneratorfunction(inspect.unwrap(function))
    return call


def _each(values: Any) -> Iterator[Any]:
    end = object()
    with contextlib.closing(values):
        while True:
            with suspended():
                value = next(values, end)
            if value is end:
                return
            yield value


def suspending_calls(*, but: Collection[str] = ()) -> Callable[[_C], _C]:
    """Return a class decorator: constructor, public methods and properties of a class run inside `suspended`.

    Args:
      but: the names of methods that stay as they are.
    """

    def decorate(kind: _C) -> _C:
        for name, member in list(vars(kind).items()):
            if name in but or (name.startswith("_") and name not in ("__init__", "__call__")):
                continue
            if isinstance(member, FunctionType):
                setattr(kind, name, suspending(member))
            elif isinstance(member, classmethod):
                setattr(kind, name, classmethod(suspending(member.__func__)))
            elif isinstance(member, property):
                get, set_ = (function and suspending(function) for function in (member.fget, member.fset))
                setattr(kind, name, property(get, set_, member.fdel, member.__doc__))
        return kind

    return decorate


@contextlib.contextmanager
def implicit_promotion() -> Iterator[None]:
    """Let code of other libraries promote dtypes and ranks, which `jax.numpy_dtype_promotion("strict")` refuses."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def of_this_thread() -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Return a function that gives a context, for another thread, with the settings of JAX that this thread has.

    JAX keeps what `jax.default_matmul_precision` and its other contexts set for the thread that entered them.
    """
    states = [(state, state.get_local()) for state in config_states.values()]
    own = [(state, value) for state, value in states if value is not config_ext.unset]

    def entered() -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        for state, value in own:
            context = StateContextManager.__new__(StateContextManager)  # the constructor would parse the value again
            context.state, context.new_val = state, value
            stack.enter_context(context)
        return stack

    return entered


def jit_disabled() -> bool:
    """Return True under `jax.disable_jit`, and warn once that nothing is compiled."""
    if not jax.config.jax_disable_jit:  # type: ignore[attr-defined]  # in the docs of JAX, not in its types
        return False
    _warn_of_slow_steps()
    return True


@functools.cache
def _warn_of_slow_steps() -> None:
    _log.warning("jax.disable_jit is on: steps run operation by operation, as with dispatch='eager', and slowly.")
