"""Descriptions of functions by value: equal for functions that compute the same, although they were made twice.

Python compares functions by identity: two calls of `optax.sgd(0.1)` give unequal objects. A description holds the code
of a function and everything that the code reaches (closures, defaults, globals, attributes), down to plain values.
Objects without a known description, and those that can change unseen (files, `numpy.random`), raise `NotByValueError`:
no description is better than a wrong one.
"""

import collections
import enum
import functools
import inspect
import sys
import types
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from resfit.backends.bytecode import NotByValueError, loaded

__all__ = ["NotByValueError", "by_value"]

# The code of these packages reads no globals that change, except JAX's settings; see `program_cache.traced`.
_PACKAGES = frozenset({"resfit", "flax", "jax", "jaxlib", "optax", "clu", "einops", "ml_dtypes"})
_PURE = _PACKAGES | {
    "builtins", "functools", "itertools", "math", "operator", "numpy", "typing", "collections", "dataclasses", "enum",
    "abc", "reprlib", "_operator", "_functools",
}  # fmt: skip
_PURE_CLASSES = _PURE | {"inspect"}
_IMPURE = frozenset({
    "breakpoint", "compile", "delattr", "eval", "exec", "globals", "id", "input", "locals", "open", "print",
    "__import__",
})  # fmt: skip
_ARRAY_BYTES = 4096  # a larger array is not compared
_MOST = 500_000  # objects in a description: a ResNet-200 has 120,000
# Attributes that Python writes into classes and no computation reads.
_OF_EVERY_CLASS = frozenset({
    "__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__", "__static_attributes__", "__hash__",
    "__annotations__", "__annotate_func__", "__annotations_cache__", "__orig_bases__", "__parameters__",
    "__abstractmethods__", "_abc_impl",
})  # fmt: skip


_Describe = TypeVar("_Describe", bound=Callable[[Any, Any], tuple[Hashable, ...]])


def by_value(thing: Any) -> Hashable:
    """Return a description that is equal for things that compute the same, and unequal otherwise.

    Args:
      thing: a function, or a structure of functions, modules' graphs and plain values.

    Raises:
      NotByValueError: if the thing reaches an object without a known description.

    Example:
      >>> def power(n):
      ...     return lambda x: x**n
      >>> by_value(power(2)) == by_value(power(2)), by_value(power(2)) == by_value(power(3))
      (True, False)
    """
    try:
        description = _Walk().of(thing)
        hash(description)
    except NotByValueError:
        raise
    except Exception as error:  # reading an attribute of a user's object can raise anything
        raise NotByValueError(f"{type(error).__name__}: {error}") from error
    return description


class _Walk:
    """The making of one description. An object that is met again, in a cycle too, is described by its number."""

    def __init__(self) -> None:
        self._met: dict[int, tuple[Any, Hashable]] = {}  # with the object: a later object can have the same id
        self._slots: dict[type, list[Any]] = {}
        self._left = _MOST

    def of(self, thing: Any) -> Hashable:
        kind = type(thing)
        if kind is str or thing is None:
            return thing  # type: ignore[no-any-return]
        if kind in (bool, int):  # True equals 1
            return kind, thing
        self._left -= 1
        if self._left < 0:
            raise NotByValueError(f"an object that reaches more than {_MOST} others")
        if kind not in _WITHOUT_IDENTITY:
            known = self._met.get(id(thing))
            if known is not None:
                return known[1]
            self._met[id(thing)] = thing, ("met", len(self._met))
        return _describe_as(kind)(thing, self)

    def all(self, things: Iterable[Any]) -> tuple[Hashable, ...]:
        return tuple([self.of(thing) for thing in things])

    def pairs(self, items: Iterable[tuple[Any, Any]]) -> tuple[Hashable, ...]:
        return tuple([self.of(thing) for pair in items for thing in pair])

    def own(self, thing: Any, base: type) -> tuple[Hashable, ...]:
        """Return class and attributes of an object, also those that a subclass or a property hides.

        Raises:
          NotByValueError: if the object has other content than attributes and the content of `base`.
        """
        cls = type(thing)
        slots = self._slots.get(cls)
        if slots is None:
            if _hidden(cls) > _hidden(base):
                raise NotByValueError(f"an object of {cls.__module__}.{cls.__qualname__}")
            slots = self._slots[cls] = [slot for kind in cls.__mro__ for slot in vars(kind).items() if _holds(*slot)]
        found: list[Hashable] = [self.of(cls)]
        for name, slot in slots:
            try:
                value = slot.__get__(thing)
            except AttributeError:
                found.append(())
                continue
            found.append(self.pairs(value.items()) if name == "__dict__" else self.of(value))
        return tuple(found)


@functools.singledispatch
def _described(thing: Any, walk: _Walk) -> Hashable:
    """Return the description of an object: its name in its package, or its class and attributes."""
    if type(thing) is object or (isinstance(thing, enum.Enum) and _is_of(type(thing).__module__, _PURE_CLASSES)):
        return "itself", thing
    if _is_named(thing):
        return "named", thing
    if _is_of(type(thing).__module__, {"resfit"}) and hasattr(thing, "decided_by"):
        return walk.of(type(thing)), walk.of(thing.decided_by())
    return walk.own(thing, object)


_describe_as = _described.dispatch  # by the type: an object can lie about its __class__
# Python may reuse one object for equal values of these types, so their identity means nothing.
_WITHOUT_IDENTITY = frozenset({float, complex, bytes, slice, range, tuple, types.MethodType, jax.tree_util.PyTreeDef})


def _for(*kinds: Any) -> Callable[[_Describe], _Describe]:
    """Register a function that describes objects of these classes. Objects of subclasses have attributes too."""

    def register(describe: _Describe) -> _Describe:
        for kind in kinds:

            def whole(thing: Any, walk: _Walk, kind: Any = kind) -> Hashable:
                return kind if type(thing) is kind else walk.own(thing, kind), *describe(thing, walk)

            _described.register(kind, whole)
        return describe

    return register


def _hidden(cls: Any) -> int:
    """Return the number of bytes of an object that no attribute shows: the content of classes written in C."""
    slots = sum(isinstance(value, types.MemberDescriptorType) for base in cls.__mro__ for value in vars(base).values())
    # An offset of -1, and any negative one of weak references, points outside of these bytes.
    return int(cls.__basicsize__ - 8 * (slots + (cls.__dictoffset__ not in (0, -1)) + (cls.__weakrefoffset__ > 0)))


def _is_slot(value: Any) -> bool:
    return isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType)


def _holds(name: str, value: Any) -> bool:
    """Return True if a slot holds attributes."""
    return isinstance(value, types.MemberDescriptorType) or (name == "__dict__" and _is_slot(value))


@_for(int, str, bytes)
def _plain(thing: Any, walk: _Walk) -> tuple[Hashable, ...]:
    kind: Any = next(kind for kind in (int, str, bytes) if isinstance(thing, kind))
    return (kind.__getnewargs__(thing),)


@_for(float)
def _float(thing: float, walk: _Walk) -> tuple[Hashable, ...]:
    return (float.hex(thing),)  # 0.0 equals -0.0


@_for(complex)
def _complex(thing: complex, walk: _Walk) -> tuple[Hashable, ...]:
    return (complex.__repr__(thing),)


@_for(slice, range)
def _range(thing: Any, walk: _Walk) -> tuple[Hashable, ...]:
    return walk.all((thing.start, thing.stop, thing.step))


_SINGLE = (
    type(...), type(NotImplemented), np.dtype, jax.Device, jax.sharding.Mesh, jax.sharding.Sharding,
    jax.sharding.PartitionSpec,
)  # fmt: skip


def _single(thing: Any, walk: _Walk) -> Hashable:
    if _is_of(type(thing).__module__, _PURE):
        return type(thing), thing
    raise NotByValueError(f"an object of {type(thing)}")


def _array(array: Any, walk: _Walk) -> Hashable:
    if (
        isinstance(array, jax.core.Tracer)
        or jnp.issubdtype(array.dtype, jax.dtypes.extended)
        or not _is_of(type(array).__module__, _PURE)
        or isinstance(array, np.ma.MaskedArray | np.memmap)
        or array.dtype.hasobject
        or array.nbytes > _ARRAY_BYTES
    ):
        raise NotByValueError(f"an array of {array.dtype}{list(array.shape)}")
    content = np.asarray(array)
    kind = (array.weak_type, array.sharding, array.committed) if isinstance(array, jax.Array) else content.strides
    return type(array), kind, content.shape, content.dtype, content.tobytes()


for _kind in _SINGLE:
    _described.register(_kind, _single)
for _kind in (np.ndarray, np.generic, jax.Array, jax.core.Tracer):
    _described.register(_kind, _array)


@_for(tuple)
def _tuple(things: Any, walk: _Walk) -> tuple[Hashable, ...]:
    return walk.all(tuple.__iter__(things))


@_for(list)
def _list(things: Any, walk: _Walk) -> tuple[Hashable, ...]:
    return walk.all(list.__iter__(things))


@_for(collections.deque)
def _deque(things: Any, walk: _Walk) -> tuple[Hashable, ...]:
    return walk.of(things.maxlen), *walk.all(collections.deque.__iter__(things))


@_for(set, frozenset)
def _set(things: Any, walk: _Walk) -> tuple[Hashable, ...]:
    # In the order of the set: a loop over an equal set can have another order.
    return walk.all((set if isinstance(things, set) else frozenset).__iter__(things))


@_for(dict)
def _dict(things: Any, walk: _Walk) -> tuple[Hashable, ...]:
    return walk.pairs(dict.items(things))


@_for(collections.OrderedDict)
def _ordered(things: Any, walk: _Walk) -> tuple[Hashable, ...]:
    return walk.pairs(collections.OrderedDict.items(things))


@_for(collections.defaultdict)
def _defaulting(things: Any, walk: _Walk) -> tuple[Hashable, ...]:
    return walk.of(things.default_factory), *walk.pairs(dict.items(things))


@_for(types.MappingProxyType)
def _mapping(things: Any, walk: _Walk) -> tuple[Hashable, ...]:
    return walk.pairs(things.items())


@_for(jax.tree_util.PyTreeDef)
def _tree(tree: Any, walk: _Walk) -> tuple[Hashable, ...]:
    node = tree.node_data()
    return () if node is None else (walk.of(node), *walk.all(tree.children()))


@_for(types.ModuleType)
def _module(module: types.ModuleType, walk: _Walk) -> tuple[Hashable, ...]:
    if _is_of(module.__name__, _PURE - {"builtins", "numpy"}):  # which hold numpy.random and open
        return (module.__name__,)
    raise NotByValueError(f"the module {module.__name__}")


@_for(types.FunctionType)
def _function(function: types.FunctionType, walk: _Walk) -> tuple[Hashable, ...]:
    # Not __module__, which functools.wraps takes from another function.
    module = function.__globals__.get("__name__")
    if _is_of(module, _PURE) and _is_named(function):
        return "named", function
    own = function.__defaults__, function.__kwdefaults__, function.__closure__, vars(function) or None
    return function.__code__, *walk.all(own), module if _is_of(module, _PURE) else walk.all(loaded(function))


@_for(types.CellType)
def _cell(cell: types.CellType, walk: _Walk) -> tuple[Hashable, ...]:
    return (walk.of(cell.cell_contents),)


@_for(types.MethodType, staticmethod, classmethod)
def _method(method: Any, walk: _Walk) -> tuple[Hashable, ...]:
    return walk.of(method.__func__), walk.of(getattr(method, "__self__", None))


@_for(types.BuiltinMethodType)
def _builtin(method: Any, walk: _Walk) -> tuple[Hashable, ...]:
    if _is_named(method):
        return (method,)
    if isinstance(method.__self__, type):
        return method.__name__, walk.of(method.__self__)
    raise NotByValueError(f"the function {method.__name__}")


@_for(type(collections.namedtuple("_", "field").field))  # type: ignore[attr-defined]
def _field(field: Any, walk: _Walk) -> tuple[Hashable, ...]:
    return (walk.of(field.__reduce__()[1][0]),)  # its index


@_for(functools.partial)
def _partial(thing: Any, walk: _Walk) -> tuple[Hashable, ...]:
    return walk.all((thing.func, thing.args, thing.keywords, vars(thing)))


@_for(property)
def _property(thing: Any, walk: _Walk) -> tuple[Hashable, ...]:
    return walk.all((thing.fget, thing.fset, thing.fdel))


@_for(functools.cached_property)
def _cached_property(thing: Any, walk: _Walk) -> tuple[Hashable, ...]:
    return (walk.of(thing.func),)


@_for(inspect.Signature)
def _signature(signature: inspect.Signature, walk: _Walk) -> tuple[Hashable, ...]:
    # Annotations do not decide how arguments are bound.
    return walk.all((one.name, one.kind.name, one.default) for one in signature.parameters.values())


@_for(types.UnionType, types.GenericAlias)
def _annotation(thing: Any, walk: _Walk) -> tuple[Hashable, ...]:
    return walk.of(getattr(thing, "__origin__", None)), walk.of(thing.__args__)


@_described.register(type)
def _type(cls: type, walk: _Walk) -> tuple[Hashable, ...]:
    if _is_of(cls.__module__, _PURE_CLASSES) and (cls.__flags__ & _IMMUTABLE or _lookup(cls) is cls):
        # A method that was replaced from outside decides too.
        methods = [value for base in cls.__mro__ for value in vars(base).values() if type(value) is types.FunctionType]
        replaced = [method for method in methods if not _is_of(method.__globals__.get("__name__"), _PURE_CLASSES)]
        return "type", cls, tuple(methods), walk.all(replaced)
    content = [pair for pair in vars(cls).items() if pair[0] not in _OF_EVERY_CLASS and not _is_slot(pair[1])]
    # By identity too: results can hold objects of the class. Weakly: a description must not keep the class alive.
    return "type", weakref.ref(cls), walk.of(cls.__bases__), walk.of(type(cls)), walk.pairs(content)


_IMMUTABLE = 1 << 8  # a flag of types that are written in C


def _is_of(module: Any, packages: frozenset[str] | set[str]) -> bool:
    return isinstance(module, str) and module.partition(".")[0] in packages and not module.startswith("numpy.random")


def _lookup(thing: Any) -> Any:
    """Return the value of the name of a thing in its module."""
    name = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None)
    found = sys.modules.get(thing.__module__)
    for part in name.split(".") if isinstance(name, str) else ():
        found = getattr(found, part, None)
    return found


def _is_named(thing: Any) -> bool:
    """Return True if an object is the value of its name in a known package: `jnp.exp`, `jax.nn.relu`, `len`."""
    module = getattr(thing, "__module__", None)
    named = _is_of(module, _PURE) and _lookup(thing) is thing
    return named and not (module == "builtins" and thing.__name__ in _IMPURE)
