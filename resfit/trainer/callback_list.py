"""Calls the hooks of callbacks, and checks them before training."""

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from resfit._utils import foreign
from resfit.callbacks.base import HOOKS, Callback, TrainedModel
from resfit.data.states import EXPECTED, packed, unpacked
from resfit.errors import CallbackError

_log = logging.getLogger("resfit")

# A hook whose default calls another one must be fired for those who override only the other.
_CALLS = {"on_train_batch_begin": "on_batch_begin", "on_train_batch_end": "on_batch_end"}


class CallbackList:
    """Fires hooks on callbacks in order, skipping those that do not listen.

    Args:
      callbacks: in order.
      model: given to each.
      params: given to each.
    """

    def __init__(self, callbacks: Iterable[Callback], model: TrainedModel, params: dict[str, Any]) -> None:
        self._callbacks = list(callbacks)
        self._listeners: dict[str, list[Callable[..., None]]] = {}
        for callback in self._callbacks:
            if not isinstance(callback, Callback):
                raise _no_callback(callback)
            _check_hooks(callback)
            callback.set_params(params)
            callback.set_model(model)

    def fire(self, hook: str, *args: Any) -> None:
        """Calls one hook of every callback that overrides it."""
        listeners = self._listeners.get(hook)
        if listeners is None:
            listeners = self._listeners[hook] = [getattr(c, hook) for c in self._callbacks if _listens(c, hook)]
        for listener in listeners:
            listener(*args)

    def state_dicts(self) -> dict[str, Any]:
        """Return what the callbacks remember, packed for a checkpoint; nothing that they do later changes it.

        The keys are the names of their classes; a second callback of a class is `Name 2`.

        Raises:
          CallbackError: naming the callback and the key of what a checkpoint cannot hold.
        """
        states = {name: state for name, callback in self._named().items() if (state := callback.state_dict())}
        return {name: packed(state, functools.partial(_refused, name)) for name, state in states.items()}

    def load_state_dicts(self, states: Mapping[str, Any]) -> None:
        """Take what `state_dicts` gave; a callback that has no state there begins anew."""
        for name, callback in self._named().items():
            if name in states:
                callback.load_state_dict(unpacked(states[name]))

    def names(self) -> list[str]:
        """Of the callbacks, as in `state_dicts`."""
        return list(self._named())

    def _named(self) -> dict[str, Callback]:
        named: dict[str, Callback] = {}
        for callback in self._callbacks:
            name = type(callback).__name__
            number = sum(type(other).__name__ == name for other in named.values()) + 1
            named[name if number == 1 else f"{name} {number}"] = callback
        return named

    @contextlib.contextmanager
    def told_of_exceptions(self) -> Iterator[None]:
        """Fires on_exception when the block is left by an exception."""
        try:
            yield
        except GeneratorExit:  # somebody read no further: nothing went wrong
            raise
        except BaseException as exception:
            self.fire("on_exception", exception)
            raise


def _refused(name: str, place: str, what: str) -> CallbackError:
    return CallbackError(
        f"{name}.{place} is {what}, which a checkpoint cannot hold. Expected {EXPECTED}. Let state_dict return those, "
        "and load_state_dict make the rest of them."
    )


def _no_callback(callback: Any) -> CallbackError:
    foreign.refuse(callback, "callbacks", CallbackError)
    if isinstance(callback, type):
        return CallbackError(
            f"callbacks holds the class {callback.__name__}. Expected an object of it: {callback.__name__}(...)."
        )
    return CallbackError(
        f"callbacks holds a {type(callback).__module__}.{type(callback).__name__}. Expected objects of classes that "
        "derive from resfit.callbacks.Callback; its hooks are Keras's, so changing the base class will do. A function "
        "is made one by resfit.callbacks.LambdaCallback."
    )


def _check_hooks(callback: Callback) -> None:
    """Finds before training what would otherwise fail after an epoch, or never be called.

    Raises:
      CallbackError: if a hook cannot be called with its arguments.
    """
    name = type(callback).__name__
    for hook in HOOKS:
        if not _listens(callback, hook):
            continue
        wanted = [
            parameter for parameter in inspect.signature(getattr(Callback, hook)).parameters if parameter != "self"
        ]
        try:
            inspect.signature(getattr(callback, hook)).bind(*wanted)
        except TypeError as error:
            raise CallbackError(
                f"{name}.{hook} cannot be called with ({', '.join(wanted)}): {error}. Expected "
                f"def {hook}(self, {', '.join(wanted)}), as in resfit.callbacks.Callback."
            ) from error
        except ValueError:  # something built in, that does not tell
            continue
    for own in vars(type(callback)):
        if own.startswith("on_") and own not in HOOKS:
            # A method of the user's own may be called on_improvement; one on an epoch is meant to be a hook.
            like = [hook for hook in HOOKS if hook.split("_")[1] == own.split("_")[1]]
            if like:
                _log.warning("%s.%s is no hook, so nobody calls it. Expected one of %s.", name, own, like)


def _listens(callback: Callback, hook: str) -> bool:
    method = getattr(callback, hook)
    if getattr(method, "__func__", method) is not getattr(Callback, hook):
        return True
    return hook in _CALLS and _listens(callback, _CALLS[hook])
