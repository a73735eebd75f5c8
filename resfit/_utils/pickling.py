"""Pickles of networks and models: with the functions of JAX, Flax and optax that `pickle` alone does not find by name.

`nnx.Linear` and `optax.adam(0.1)` hold functions that these libraries make inside other functions, and `jax.nn.relu` is
an object without a name of its own. They are stored as the place of their code in the library, and the values that the
code refers to. Functions of the user are stored by name, as `pickle` does.
"""

import importlib
import inspect
import io
import pickle
import types
from collections.abc import Iterator
from typing import Any

from resfit.errors import PickleError

_LIBRARIES = frozenset({"jax", "flax", "optax", "clu", "resfit"})


def dumps(thing: Any, root: Any = None) -> bytes:
    """Return the pickle of an object.

    Args:
      thing: the object.
      root: an object that exists before `loads`: the pickle refers to it.

    Raises:
      PickleError: if the object holds a function that was made inside another function, or anything else that `pickle`
        does not accept.
    """
    stream = io.BytesIO()
    try:
        _Pickler(stream, root).dump(thing)
    except PickleError:
        raise
    except (pickle.PicklingError, TypeError, AttributeError, NotImplementedError, RecursionError) as error:
        raise PickleError(f"pickle raised {type(error).__name__}: {error}") from error
    return stream.getvalue()


def loads(content: bytes, root: Any = None) -> Any:
    """Return the object of a pickle of `dumps`. As with every pickle, the author of the content can run any code."""
    return _Unpickler(io.BytesIO(content), root).load()


class Pickled:
    """A base class whose objects `pickle` stores by `dumps`."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return loads, (dumps(self),)


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, root: Any) -> None:
        super().__init__(stream, pickle.HIGHEST_PROTOCOL)
        self._root = root

    def persistent_id(self, thing: Any) -> Any:
        return "root" if thing is self._root and thing is not None else None

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, Pickled):
            return object.__reduce_ex__(thing, pickle.HIGHEST_PROTOCOL)
        module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
        name = name or getattr(thing, "__name__", None)
        if not isinstance(module, str) or not isinstance(name, str) or isinstance(thing, type):
            return NotImplemented
        by_name = _named(module, name) is thing
        if isinstance(thing, types.FunctionType):
            return NotImplemented if by_name else _reduced(thing)
        return (_named, (module, name)) if by_name else NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, root: Any) -> None:
        super().__init__(stream)
        self._root = root

    def persistent_load(self, _: Any) -> Any:
        return self._root


def _named(module: str, name: str) -> Any:
    """Return the object of a name in a module; None without one."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _reduced(function: types.FunctionType) -> tuple[Any, ...]:
    """Return the parts from which `pickle` makes a function of a library again."""
    code, module = function.__code__, function.__module__
    if module.partition(".")[0] not in _LIBRARIES or _code(module, *_place(code)) != code:
        raise PickleError(
            f"the function {function.__qualname__} ({code.co_filename}, line {code.co_firstlineno}) is a lambda, or is "
            "defined inside another function or in a class that was made so, and pickle stores functions by name"
        )
    cells = {i: cell.cell_contents for i, cell in enumerate(function.__closure__ or ()) if _is_full(cell)}
    attributes = {name: getattr(function, name) for name in ("__defaults__", "__kwdefaults__", "__name__")}
    # The content of a cell can be the function itself, so the cells are filled later.
    return _made, (module, *_place(code)), (cells, attributes), None, None, _fill


def _is_full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _place(code: types.CodeType) -> tuple[str, int]:
    return code.co_qualname, code.co_firstlineno


def _made(module: str, name: str, line: int) -> types.FunctionType:
    code = _code(module, name, line)
    if code is None:
        raise PickleError(
            f"The pickle holds the function {name} of {module}, which the installed version does not have there. "
            "Expected the versions of the packages with which the pickle was written. Between versions, use model.save "
            "and resfit.load."
        )
    cells = tuple(types.CellType() for _ in code.co_freevars)
    made = types.FunctionType(code, vars(importlib.import_module(module)), closure=cells)
    made.__module__, made.__qualname__ = module, name
    return made


def _fill(function: types.FunctionType, parts: tuple[dict[int, Any], dict[str, Any]]) -> None:
    cells, attributes = parts
    for i, content in cells.items():
        (function.__closure__ or ())[i].cell_contents = content
    for name, value in attributes.items():
        setattr(function, name, value)


def _code(module: str, name: str, line: int) -> types.CodeType | None:
    """Return the code of a function that a named function or method of a module makes."""
    outer = inspect.unwrap(_named(module, name.partition(".<locals>.")[0]) or _code)
    codes = _inside(outer.__code__) if isinstance(outer, types.FunctionType) else ()
    return next((code for code in codes if _place(code) == (name, line)), None)


def _inside(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _inside(constant)
