"""Errors for unknown keyword arguments and surplus positional ones, with the names of the arguments in resfit."""

import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

from resfit._utils.suggest import did_you_mean
from resfit._utils.words import use
from resfit.errors import ArgumentError

# The arguments of every checked function by place, for a word that another function takes.
_ARGUMENTS: dict[str, dict[str, set[str]]] = {}

_P = ParamSpec("_P")
_R = TypeVar("_R")


def only_others(caller: str, place: str, given: Mapping[str, object], own: Mapping[str, str]) -> None:
    """Raise if arguments that a function passes on contain one that the function sets itself.

    Args:
      caller: the function.
      place: its argument that holds the others by name.
      given: the others.
      own: the names that the function sets, with its own argument for each.

    Raises:
      ArgumentError: with the argument of the function.

    Example:
      >>> only_others("search", "fit_arguments", {"epochs": 3}, {"epochs": "epochs"})
      Traceback (most recent call last):
      ...
      resfit.errors.ArgumentError: search got epochs=3 in fit_arguments, and sets epochs itself. Use search(epochs=...).
    """
    for name, value in given.items():
        if name in own:
            raise ArgumentError(
                f"{caller} got {name}={shown(value)} in {place}, and sets {name} itself. Use {caller}({own[name]}=...)."
            )


def checked(place: str, name: str | None = None) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Return a decorator of functions: an unknown keyword argument raises `ArgumentError`, which names the substitute.

    A positional argument too many raises `ArgumentError` with the names of the others, and a missing argument with all
    required ones.

    Args:
      place: the section of the table of words, such as "arguments" or "callback arguments".
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
        takes_more = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())
        known = [
            known.name
            for known in parameters.values()
            if known.name not in ("self", "cls", "_cls") and known.kind is not known.VAR_POSITIONAL
        ]
        called = name or function.__name__
        none = "Expected no arguments by name." if takes_more else "Expected no arguments."
        expected = f"Expected some of {known}." if known else none
        by_position = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
        positional = [known.name for known in parameters.values() if known.kind in by_position]
        needed = [word for word in known if parameters[word].default is inspect.Parameter.empty]
        _ARGUMENTS.setdefault(place, {})[called] = set(known)

        names = frozenset(known)
        # With as many positional arguments as these, none is missing.
        enough = max((positional.index(word) + 1 for word in needed if word in positional), default=0)
        most = sys.maxsize if takes_more else len(positional)
        at_once = all(word in positional for word in needed)

        def check(args: Sequence[object], kwargs: Mapping[str, object]) -> None:
            for word in kwargs:
                if word not in known:
                    raise ArgumentError(
                        f"{called} got {word}={shown(kwargs[word])}, and has no argument {word}. "
                        + (
                            _of_this(word, place, called, known)
                            or _of_others(word, place)
                            or f"{did_you_mean(word, known)} {expected}".lstrip()
                        )
                    )
            if len(args) > most:
                named = [word for word in known if word not in positional]
                taken = [word for word in positional if word in known]
                after = f" after its positional arguments {', '.join(taken)}" if taken else " by position"
                raise ArgumentError(
                    f"{called} got {shown(args[len(positional)])}{after}. "
                    + (f"Expected the others by name: {', '.join(named)}." if named else "Expected no others.")
                )
            missing = [word for word in needed if word not in kwargs and word not in positional[: len(args)]]
            if missing:
                raise ArgumentError(
                    f"{called} got no {' and no '.join(missing)}. Expected {called}({', '.join(needed)})."
                )

        @functools.wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            # Some of these functions are called for every batch, nearly always with arguments that this line accepts.
            if not (at_once and enough <= len(args) <= most and names.issuperset(kwargs)):
                check(args, kwargs)
            return function(*args, **kwargs)

        return call

    return decorate


def check_constructors(module: str, place: str = "function arguments") -> None:
    """Replace the constructors of the public classes of a package by `checked` ones, which know the public names.

    Protocols, and classes without a constructor, keep the errors of Python.

    Args:
      module: the name of a package with `__all__`, or of a module: all classes that it defines are public.
      place: the section of the table of words.

    Example:
      >>> import resfit
      >>> resfit.schedules.Cosine(max_lr=1.0)
      Traceback (most recent call last):
      ...
      resfit.errors.ArgumentError: Cosine got max_lr=1.0, and has no argument max_lr. Use peak.
    """
    members = vars(sys.modules[module])
    own = [name for name, value in members.items() if getattr(value, "__module__", None) == module and name[0] != "_"]
    for name in members.get("__all__", own):
        kind = members[name]
        if isinstance(kind, type) and not getattr(kind, "_is_protocol", False):
            method = "__new__" if issubclass(kind, tuple) else "__init__"
            made = getattr(kind, method)
            if made is not object.__init__:
                setattr(kind, method, checked(place, name)(made))


def shown(value: object) -> str:
    """Return the first 60 characters of a value's representation, in one line.

    Example:
      >>> shown("a" * 100)[-3:], shown([[1, 2]])
      ('aaa', '[[1, 2]]')
    """
    return " ".join(repr(value).split())[:60]


def _of_this(word: str, place: str, called: str, known: Sequence[str]) -> str:
    """Return the substitute for a word of another library.

    An argument of this function comes before that of another one, and an argument that no function has is not named.
    """
    sentence = use(word, place)
    argument = re.fullmatch(r"Use (\w+)(\.|, .*)", sentence)
    if argument is not None and argument[1] not in known:
        return ""
    other = re.fullmatch(r"Use (\w+)\((\w+)=\.\.\.\)\.", sentence)
    return f"Use {other[2]}." if other is not None and other[1] != called and other[2] in known else sentence


def _of_others(word: str, place: str) -> str:
    """Return a sentence with the functions that have this argument, or an empty text."""
    if place != "arguments":  # other places hold classes, each with its own arguments
        return ""
    functions = [function for function, arguments in _ARGUMENTS.get(place, {}).items() if word in arguments]
    return f"It is an argument of {' and '.join(functions)}." if functions else ""
