"""Copy and compare plain values that can change in place: lists, dicts, sets, and dataclasses such as settings."""

import collections
import copy
import dataclasses
import types
from typing import Any

import jax
import numpy as np
from flax import linen, nnx

_CONTAINERS = (list, dict, set, collections.deque)
_MISSING = object()


def plain_attributes(part: nnx.Pytree) -> dict[str, Any]:
    """Return the attributes of a part that hold neither parts nor arrays."""
    data = part._pytree__nodes
    return {
        name: value
        for name, value in vars(part).items()
        if not (name.startswith("_pytree__") or data.get(name) or isinstance(value, nnx.Variable | nnx.Pytree))
    }


def copied(value: Any) -> Any:
    """Return a copy of a value and of everything inside it that can change in place; the value itself if nothing can.

    Example:
      >>> settings = {"sizes": [1, 2]}
      >>> before = copied(settings)
      >>> settings["sizes"].append(3)
      >>> before, copied(before["sizes"]) is before["sizes"], copied((1, "a"))
      ({'sizes': [1, 2]}, False, (1, 'a'))
    """
    return _copied(value, {})


def _copied(value: Any, met: dict[int, Any]) -> Any:
    if type(value) is tuple:
        parts = tuple([_copied(part, met) for part in value])
        return parts if any(new is not old for new, old in zip(parts, value, strict=True)) else value
    if not (isinstance(value, _CONTAINERS) or _is_record(value)):
        return value
    if id(value) not in met:  # a container can hold itself
        made = met[id(value)] = copy.copy(value)
        if isinstance(value, dict):
            for key, part in value.items():
                dict.__setitem__(made, key, _copied(part, met))
        elif isinstance(value, list | collections.deque):
            for i, part in enumerate(value):
                made[i] = _copied(part, met)
        elif not isinstance(value, set):
            for name, part in _fields(value).items():
                if (own := _copied(part, met)) is not part:
                    setattr(made, name, own)
    return met[id(value)]


def same(old: Any, new: Any, *, more_keys: bool = False) -> bool:
    """Return True if two plain values are equal, also inside; False if that is unknown.

    Args:
      old: the value before.
      new: the value after.
      more_keys: True to accept dicts and sets that gained entries, as a cache does.
    """
    return _same(old, new, more_keys, set())


def _same(old: Any, new: Any, more_keys: bool, met: set[tuple[int, int]]) -> bool:
    if old is new or (id(old), id(new)) in met:
        return True
    if type(old) is not type(new) or isinstance(new, jax.Array):
        return False
    if isinstance(new, np.ndarray):
        return old.dtype == new.dtype and np.array_equal(old, new)
    if isinstance(new, set) and more_keys:
        return set.issubset(old, new)
    old_parts: dict[Any, Any]
    new_parts: dict[Any, Any]
    if isinstance(new, list | tuple | collections.deque):
        old_parts, new_parts = dict(enumerate(old)), dict(enumerate(new))
        more_keys_here = False
    elif isinstance(new, dict) or _is_record(new):
        old_parts, new_parts = (one if isinstance(one, dict) else _fields(one) for one in (old, new))
        more_keys_here = more_keys
    else:
        try:
            return bool(old == new)
        except (TypeError, ValueError):  # the equality of objects that hold arrays has no truth value
            return False
    met.add((id(old), id(new)))
    return (more_keys_here or len(old_parts) == len(new_parts)) and all(
        _same(part, new_parts.get(key, _MISSING), more_keys, met) for key, part in old_parts.items()
    )


def leaves(value: Any) -> list[Any]:
    """Return the values inside lists, dicts, sets and dataclasses, in no order."""
    found: list[Any] = []
    met: set[int] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if id(one) in met:
            continue
        met.add(id(one))
        if isinstance(one, list | tuple | set | collections.deque):
            waiting += one
        elif isinstance(one, dict) or _is_record(one):
            waiting += (one if isinstance(one, dict) else _fields(one)).values()
        else:
            found += jax.tree.leaves(one)
    return found


def _is_record(value: Any) -> bool:
    """Return True for an object of named values that can be set, but not for a module or a class."""
    if isinstance(value, types.SimpleNamespace):
        return True
    params = getattr(type(value), "__dataclass_params__", None)
    return params is not None and not params.frozen and not isinstance(value, linen.Module | nnx.Pytree | nnx.Variable)


def _fields(record: Any) -> dict[str, Any]:
    """Return the values of a dataclass or namespace by name."""
    if isinstance(record, types.SimpleNamespace):
        return vars(record)
    names = [field.name for field in dataclasses.fields(record)]
    return {name: getattr(record, name) for name in names if hasattr(record, name)}
