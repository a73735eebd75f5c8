"""Errors for unknown keyword arguments, with the name of the argument in resfit."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from resfit._utils.suggest import did_you_mean
from resfit._utils.words import use
from resfit.errors import ArgumentError

# The arguments of every checked function by place, for a word that another function takes.
_ARGUMENTS: dict[str, dict[str, set[str]]] = {}

_P = ParamSpec("_P")
_R = TypeVar("_R")


def checked(place: str, name: str | None = None) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Return a decorator of functions: an unknown keyword argument raises `ArgumentError`, which names the substitute.

    Args:
      place: the section of the table of words, "arguments" or "callback arguments".
      name: of the function, for messages; its own by default.

    Example:
      >>> @checked("arguments")
      ... def fit(x, epochs=1):
      ...     return epochs
      >>> fit(0, max_epochs=3)
      Traceback (most recent call last):
      ...
      resfit.errors.ArgumentError: fit got max_epochs=3, and has no argument max_epochs. Use fit(epochs=...).
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        parameters = inspect.signature(function).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return function
        known = [known for known in parameters if known not in ("self", "cls")]
        called = name or function.__name__
        _ARGUMENTS.setdefault(place, {})[called] = set(known)

        @functools.wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            for word in kwargs:
                if word not in parameters:
                    raise ArgumentError(
                        f"{called} got {word}={kwargs[word]!r:.60}, and has no argument {word}. "
                        + (
                            use(word, place)
                            or _of_others(word, place)
                            or f"Expected some of {known}.{did_you_mean(word, known)}"
                        )
                    )
            return function(*args, **kwargs)

        return call

    return decorate


def _of_others(word: str, place: str) -> str:
    """Return a sentence with the functions that have this argument, or an empty text."""
    if place != "arguments":  # other places hold classes, each with its own arguments
        return ""
    functions = [function for function, arguments in _ARGUMENTS.get(place, {}).items() if word in arguments]
    return f"It is an argument of {' and '.join(functions)}." if functions else ""
