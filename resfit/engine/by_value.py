"""Describe by value what a function computes, so that equal functions are known as equal although made twice.

Python compares functions by identity: `optax.sgd(0.1)` made twice gives unequal objects. A description holds the code
of a function and everything that the code reaches (closures, defaults, globals, attributes), down to plain values. What
is not understood, or can change unseen (files, `numpy.random`), raises `NotByValueError`: no description is better than
one that is wrong.
"""

import builtins
import collections
import dis
import enum
import functools
import sys
import types
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# The code of these packages decides nothing by globals that change, other than JAX's settings; see `Step.prepare`.
_PACKAGES = frozenset({"resfit", "flax", "jax", "jaxlib", "optax", "clu", "einops", "ml_dtypes"})
_PURE_MODULES = frozenset(
    {"functools", "itertools", "math", "operator", "numpy", "typing", "collections", "dataclasses"}
)
_IMPURE = frozenset({"breakpoint", "eval", "exec", "globals", "id", "input", "locals", "open", "print", "__import__"})
_ATOMS = (
    type(...), type(NotImplemented), bool, int, complex, str, bytes, np.dtype, enum.Enum, slice, range,
    jax.Device, jax.sharding.Mesh, jax.sharding.Sharding, jax.sharding.PartitionSpec, jax.tree_util.PyTreeDef,
)  # fmt: skip
_ARRAY_BYTES = 4096  # a larger array is not compared
# What Python writes into classes and no computation reads.
_OF_EVERY_CLASS = frozenset({
    "__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__", "__static_attributes__", "__hash__",
    "__annotations__", "__annotate_func__", "__annotations_cache__", "__orig_bases__", "__parameters__",
    "__abstractmethods__", "_abc_impl",
})  # fmt: skip


_Describe = TypeVar("_Describe", bound=Callable[[Any, Any], Hashable])


class NotByValueError(Exception):
    """An object is not described by value."""


def by_value(thing: Any) -> Hashable:
    """Return a description that is equal for things that compute the same, and unequal otherwise.

    Args:
      thing: a function, or a structure of functions, modules' graphs and plain values.

    Raises:
      NotByValueError: if something that the thing reaches is not understood.

    Example:
      >>> def power(n):
      ...     return lambda x: x**n
      >>> by_value(power(2)) == by_value(power(2)), by_value(power(2)) == by_value(power(3))
      (True, False)
    """
    return _Walk().of(thing)


class _Walk:
    """One description. Objects that are met again, in a cycle too, are described once."""

    def __init__(self) -> None:
        self._met: dict[int, tuple[Any, Hashable]] = {}  # with the object: a number can name another one later

    def of(self, thing: Any) -> Hashable:
        kind = type(thing)
        if kind is str or thing is None:
            return thing  # type: ignore[no-any-return]
        if kind in (bool, int):  # True equals 1
            return kind, thing
        known = self._met.get(id(thing))
        if known is None:
            self._met[id(thing)] = thing, ("met", len(self._met))
            known = self._met[id(thing)] = thing, _described(thing, self)
        return known[1]

    def all(self, things: Iterable[Any]) -> tuple[Hashable, ...]:
        return tuple([self.of(thing) for thing in things])


@functools.singledispatch
def _described(thing: Any, walk: _Walk) -> Hashable:
    """Describe an object: what its package knows under its name, or its class and attributes."""
    if _is_named(thing):
        return "named", thing
    cls = type(thing)
    if _package(cls.__module__) == "resfit" and hasattr(cls, "decided_by"):
        return walk.of(cls), walk.of(thing.decided_by())
    attributes = dict(_attributes(thing))
    if not attributes and not _is_empty(cls):
        raise NotByValueError(f"an object of {cls.__module__}.{cls.__qualname__}")
    return walk.of(cls), walk.of(attributes)


def _for(*kinds: Any) -> Callable[[_Describe], _Describe]:
    def register(describe: _Describe) -> _Describe:
        for kind in kinds:
            _described.register(kind, describe)
        return describe

    return register


@_for(*_ATOMS)
def _atom(thing: Any, walk: _Walk) -> Hashable:
    return type(thing), thing


@_for(float)
def _float(thing: float, walk: _Walk) -> Hashable:
    return type(thing), thing.hex()  # 0.0 equals -0.0


@_for(np.ndarray, np.generic, jax.Array, jax.core.Tracer)
def _array(array: Any, walk: _Walk) -> Hashable:
    traced, extended = isinstance(array, jax.core.Tracer), jnp.issubdtype(array.dtype, jax.dtypes.extended)
    if (
        traced
        or extended
        or isinstance(array, np.ma.MaskedArray)
        or array.dtype.hasobject
        or array.nbytes > _ARRAY_BYTES
    ):
        raise NotByValueError(f"an array of {array.dtype}{list(array.shape)}")
    content = np.asarray(array)
    return type(array), content.shape, content.dtype, content.tobytes(), getattr(array, "weak_type", False)


@_for(tuple, list, collections.deque)
def _sequence(things: Iterable[Any], walk: _Walk) -> Hashable:
    return walk.of(type(things)), walk.all(things), walk.of(_extra(things))


@_for(set, frozenset)
def _set(things: Iterable[Any], walk: _Walk) -> Hashable:
    return walk.of(type(things)), frozenset(walk.all(things)), walk.of(_extra(things))


@_for(dict, types.MappingProxyType)
def _mapping(things: Mapping[Any, Any], walk: _Walk) -> Hashable:
    return walk.of(type(things)), walk.all(things.keys()), walk.all(things.values()), walk.of(_extra(things))


@_for(types.ModuleType)
def _module(module: types.ModuleType, walk: _Walk) -> Hashable:
    if _package(module.__name__) in _PACKAGES | _PURE_MODULES and not module.__name__.startswith("numpy.random"):
        return "module", module.__name__
    raise NotByValueError(f"the module {module.__name__}")


@_for(types.FunctionType)
def _function(function: types.FunctionType, walk: _Walk) -> Hashable:
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    own = function.__code__, walk.of(function.__defaults__), walk.of(function.__kwdefaults__), walk.all(cells)
    if _package(function.__module__) in _PACKAGES:
        return "function", function.__module__, own
    return "function", own, walk.of(vars(function)), walk.all(_globals(function))


@_for(types.MethodType, staticmethod, classmethod)
def _method(method: Any, walk: _Walk) -> Hashable:
    return type(method), walk.of(method.__func__), walk.of(getattr(method, "__self__", None))


@_for(functools.partial)
def _partial(thing: Any, walk: _Walk) -> Hashable:
    return "partial", walk.of(thing.func), walk.all(thing.args), walk.of(thing.keywords)


@_for(property, functools.cached_property)
def _property(thing: Any, walk: _Walk) -> Hashable:
    return type(thing), walk.all(getattr(thing, name, None) for name in ("fget", "fset", "fdel", "func"))


@_for(type)
def _type(cls: type, walk: _Walk) -> Hashable:
    if _package(cls.__module__) in _PACKAGES | _PURE_MODULES | {"builtins"} and "<locals>" not in cls.__qualname__:
        # A method that somebody replaced is another one.
        return "type", cls, cls.__call__ if issubclass(cls, nnx.Module) else None
    content = {name: value for name, value in vars(cls).items() if name not in _OF_EVERY_CLASS and not _is_slot(value)}
    # By identity too: results can hold objects of the class. Weakly: a description must not keep the class alive.
    return "custom type", weakref.ref(cls), walk.all(cls.__bases__), walk.of(type(cls)), walk.of(content)


def _package(name: str | None) -> str:
    return (name or "").partition(".")[0]


def _is_named(thing: Any) -> bool:
    """Return whether an opaque object is what its package knows under its name: `jnp.exp`, `jax.nn.relu`, `len`."""
    module, name = (
        getattr(thing, "__module__", None),
        getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None),
    )
    if not isinstance(module, str) or not isinstance(name, str) or module.startswith("numpy.random"):
        return False
    known = _package(module) in _PACKAGES | _PURE_MODULES | {"_operator", "_functools"}
    pure = known or (module == "builtins" and name not in _IMPURE)
    return pure and getattr(sys.modules.get(module), name, None) is thing


def _globals(function: types.FunctionType) -> Iterator[Any]:
    """Yield what the code of a function, and of functions inside it, loads by a name that is not its own.

    An attribute of a module is yielded in place of the module: `SCALE` for `config.SCALE`.
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


@functools.lru_cache(maxsize=1024)
def _loads(code: types.CodeType) -> tuple[tuple[str, ...], ...]:
    """Return the globals that code loads, each followed by the attributes that are loaded from it.

    Raises:
      NotByValueError: if the code imports or assigns globals.
    """
    found: list[list[str]] = []
    follows = False  # whether the last instruction loaded a global or an attribute of one
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found.append([instruction.argval])
            follows = True
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and follows:
            found[-1].append(instruction.argval)
        elif instruction.opname in ("IMPORT_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"):
            raise NotByValueError(f"{instruction.opname} {instruction.argval}")
        else:
            follows = instruction.opname == "EXTENDED_ARG" and follows
    inside = [_loads(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    return tuple(dict.fromkeys([*map(tuple, found), *(one for loads in inside for one in loads)]))


def _attributes(thing: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(thing, "__dict__", {}).items()
    for cls in type(thing).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(thing, name):
                yield name, getattr(thing, name)


def _extra(things: Any) -> Any:
    """Return the attributes of a container of the user's class."""
    return None if type(things) in (tuple, list, dict, set, frozenset) else dict(_attributes(things))


def _is_slot(value: Any) -> bool:
    return isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType)


def _is_empty(cls: type) -> bool:
    """Return whether objects of a class hold nothing: a class written in Python, whose bases are such too."""
    return all(base is object or ("__module__" in vars(base) and not _is_c(base)) for base in cls.__mro__)


def _is_c(cls: type) -> bool:
    return any(isinstance(value, types.MethodDescriptorType) for value in vars(cls).values())
