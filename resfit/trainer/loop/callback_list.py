"""The callbacks of a call: their hooks are checked before training, and fired in order."""

import contextlib
import functools
import inspect
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from resfit._utils import foreign, words
from resfit.callbacks.base import HOOKS, Callback, TrainedModel
from resfit.data.states import EXPECTED, packed, unpacked
from resfit.errors import CallbackError
from resfit.trainer.devices.together import outside

_log = logging.getLogger("resfit")

# The default of these hooks calls another hook, so they fire also for callbacks that override only the other one.
_CALLS = {"on_train_batch_begin": "on_batch_begin", "on_train_batch_end": "on_batch_end"}


# Methods that can be called with the arguments of a hook: to read one costs as much as a step of a small net.
_checked: dict[str, weakref.WeakSet[Any]] = {hook: weakref.WeakSet() for hook in HOOKS}


class CallbackList:
    """Fires hooks on callbacks in order, and skips callbacks that do not override a hook.

    Args:
      callbacks: in order.
      model: passed to `set_model` of each.
      params: passed to `set_params` of each.

    Raises:
      CallbackError: if an entry is not a callback, or a hook cannot be called with its arguments.
    """

    def __init__(self, callbacks: Iterable[Callback], model: TrainedModel, params: dict[str, Any]) -> None:
        self._callbacks = list(callbacks)
        self._listeners: dict[str, list[Callable[..., None]]] = {}
        for callback in self._callbacks:
            if not isinstance(callback, Callback):
                raise _not_a_callback(callback)
            _check_hooks(callback)
            callback.set_params(params)
            callback.set_model(model)

    def fire(self, hook: str, *args: Any) -> None:
        """Call a hook of every callback that overrides it."""
        if listeners := self._of(hook):
            with outside():
                for listener in listeners:
                    listener(*args)

    def listens(self, hook: str) -> bool:
        """Return True if a callback overrides a hook."""
        return bool(self._of(hook))

    def _of(self, hook: str) -> list[Callable[..., None]]:
        listeners = self._listeners.get(hook)
        if listeners is None:
            listeners = self._listeners[hook] = [getattr(c, hook) for c in self._callbacks if _listens(c, hook)]
        return listeners

    def state_dicts(self) -> dict[str, Any]:
        """Return copies of the states of the callbacks, packed for a checkpoint.

        The keys are the names of the classes; the key of a second callback of a class is `Name 2`.

        Raises:
          CallbackError: if a checkpoint cannot hold a state; the message names the callback and the key.
        """
        states = {name: state for name, callback in self._named().items() if (state := callback.state_dict())}
        return {name: packed(state, functools.partial(_state_error, name)) for name, state in states.items()}

    def load_state_dicts(self, states: Mapping[str, Any]) -> None:
        """Restore states from `state_dicts`. A callback without a saved state starts with its initial state."""
        for name, callback in self._named().items():
            if name in states:
                callback.load_state_dict(unpacked(states[name]))

    def names(self) -> list[str]:
        """Return the names of the callbacks, as in `state_dicts`."""
        return list(self._named())

    def _named(self) -> dict[str, Callback]:
        named: dict[str, Callback] = {}
        for callback in self._callbacks:
            name = type(callback).__name__
            number = sum(type(other).__name__ == name for other in named.values()) + 1
            named[name if number == 1 else f"{name} {number}"] = callback
        return named

    @contextlib.contextmanager
    def reporting_exceptions(self) -> Iterator[None]:
        """Fire on_exception if the block raises."""
        try:
            yield
        except GeneratorExit:  # the caller stopped reading: nothing failed
            raise
        except BaseException as exception:
            self.fire("on_exception", exception)
            raise


def _state_error(name: str, place: str, what: str) -> CallbackError:
    return CallbackError(
        f"{name}.{place} is {what}, which a checkpoint cannot hold. Expected {EXPECTED}. Let state_dict return only "
        "those, and load_state_dict rebuild the rest."
    )


def _not_a_callback(callback: Any) -> CallbackError:
    foreign.refuse(callback, "callbacks", CallbackError)
    if isinstance(callback, type):
        return CallbackError(
            f"callbacks holds the class {callback.__name__}. Expected an instance: pass {callback.__name__}(...)."
        )
    if isinstance(callback, str):
        expected = "Use an object of a class of resfit.callbacks, such as resfit.callbacks.EarlyStopping(patience=3)."
        return CallbackError(f"callbacks holds the text {callback!r}. {words.use(callback, 'callbacks') or expected}")
    return CallbackError(
        f"callbacks holds a {type(callback).__module__}.{type(callback).__name__}. Expected instances of "
        "resfit.callbacks.Callback. Its hooks are those of Keras, so changing the base class is enough. To pass a "
        "function, use resfit.callbacks.LambdaCallback."
    )


def _check_hooks(callback: Callback) -> None:
    """Check every hook of a callback before training, and warn of methods whose names look like hooks.

    Raises:
      CallbackError: if a hook cannot be called with its arguments.
    """
    for hook in HOOKS:
        if _listens(callback, hook):
            _check_signature(callback, hook)
    for own in vars(type(callback)):
        if own.startswith("on_") and own not in HOOKS:
            # A custom method can be called on_improvement; one on an epoch is meant to be a hook.
            like = [hook for hook in HOOKS if hook.split("_")[1] == own.split("_")[1]]
            if like:
                name = type(callback).__name__
                _log.warning("%s.%s is not a hook and is never called. Expected one of %s.", name, own, like)


def _check_signature(callback: Callback, hook: str) -> None:
    wanted, method = _arguments(hook), getattr(callback, hook)
    function = getattr(method, "__func__", None)
    if function in _checked[hook]:
        return
    try:
        inspect.signature(method).bind(*wanted)
    except TypeError as error:
        raise CallbackError(
            f"{type(callback).__name__}.{hook} cannot be called with ({', '.join(wanted)}): {error}. Expected "
            f"def {hook}(self, {', '.join(wanted)}), as in resfit.callbacks.Callback."
        ) from error
    except ValueError:  # a built-in function without a signature
        return
    if function is not None:
        _checked[hook].add(function)


@functools.cache
def _arguments(hook: str) -> list[str]:
    return [name for name in inspect.signature(getattr(Callback, hook)).parameters if name != "self"]


def _listens(callback: Callback, hook: str) -> bool:
    """Return True if a callback overrides a hook, or one that the default of the hook calls."""
    method = getattr(callback, hook)
    if getattr(method, "__func__", method) is not getattr(Callback, hook):
        return True
    return hook in _CALLS and _listens(callback, _CALLS[hook])
