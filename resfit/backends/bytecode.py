"""The globals that the code of a function loads."""

import builtins
import dis
import functools
import types
from collections.abc import Iterator
from typing import Any


class NotByValueError(Exception):
    """An object has no description by value, see `by_value`."""


def loaded(function: types.FunctionType) -> Iterator[Any]:
    """Yield the values that the code of a function, and of functions inside it, loads by names of globals.

    For `config.SCALE`, the value is the attribute and not the module.

    Raises:
      NotByValueError: if a name is unknown, or the code imports or assigns something that outlasts the call.
    """
    for name, *attributes in _loads(function.__code__):
        if name in function.__globals__:
            value = function.__globals__[name]
        elif hasattr(builtins, name):
            value = getattr(builtins, name)
        else:
            raise NotByValueError(f"the unknown name {name}")
        while attributes and isinstance(value, types.ModuleType):
            if not hasattr(value, attributes[0]):
                raise NotByValueError(f"the unknown name {name}.{attributes[0]}")
            value = getattr(value, attributes.pop(0))
        yield value


def clear() -> None:
    """Forget the code of functions."""
    _loads.cache_clear()


@functools.lru_cache(maxsize=1024)
def _loads(code: types.CodeType) -> tuple[tuple[str, ...], ...]:
    """Return the names of globals that code loads, each followed by the attributes that the code loads from it."""
    found: list[list[str]] = []
    follows = False  # True after an instruction that loaded a global or an attribute of one
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            found.append([instruction.argval])
            follows = True
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and follows:
            found[-1].append(instruction.argval)
        elif instruction.opname in ("IMPORT_NAME", "STORE_GLOBAL", "DELETE_GLOBAL") or (
            instruction.opname == "STORE_DEREF" and instruction.argval in code.co_freevars
        ):
            raise NotByValueError(f"{instruction.opname} {instruction.argval}")
        else:
            follows = instruction.opname == "EXTENDED_ARG" and follows
    inside = [_loads(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    return tuple(dict.fromkeys([*map(tuple, found), *(one for loads in inside for one in loads)]))
