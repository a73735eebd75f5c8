"""Warn of plain Python attributes that a call writes: every step starts with their old values again."""

import contextlib
import functools
import inspect
import logging
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from resfit.nets.modes import MODE_KEYWORDS

_log = logging.getLogger("resfit")
_MISSING = object()
_GROWING = (list, dict, set)


@contextlib.contextmanager
def watched(module: nnx.Module, known: set[str] | None = None) -> Iterator[None]:
    """Warn of plain attributes of a module that change inside the context.

    Variables, Intermediates and other data of NNX may change: a step reads them afterwards. Mode flags may change too,
    because a call sets them before it reads them, and values of `functools.cached_property`, which are computed again.

    Args:
      module: the copy that a step calls.
      known: names of attributes without a warning; the names of new warnings are added.

    Example:
      >>> module = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
      >>> with watched(module):
      ...     module.bias[...] += 1  # no warning
    """
    parts = [(path, part, _plain(part)) for path, part in nnx.iter_graph(module) if isinstance(part, nnx.Pytree)]
    yield
    known = set() if known is None else known
    for path, part, before in parts:
        for name, (value, content) in _plain(part).items():
            full = ".".join(map(str, (*path, name)))
            old, old_content = before.get(name, (_MISSING, None))
            if full not in known and not (_same(old, value) and _same(old_content, content)):
                known.add(full)
                _warn(full, part, old if content is None else old_content, value)


def _plain(part: nnx.Pytree) -> dict[str, tuple[Any, Any]]:
    """Return the value of every static attribute of NNX, and a copy of its content if that can grow."""
    data = part._pytree__nodes
    return {
        name: (value, type(value)(value) if type(value) in _GROWING else None)
        for name, value in vars(part).items()
        if not (name.startswith("_pytree__") or data.get(name) or isinstance(value, nnx.Variable | nnx.Pytree))
        and name not in MODE_KEYWORDS
        and not isinstance(inspect.getattr_static(type(part), name, None), functools.cached_property)
    }


def _same(old: Any, new: Any) -> bool:
    if old is new:
        return True
    if type(old) is not type(new) or isinstance(new, jax.Array | np.ndarray):
        return False
    if isinstance(new, list | tuple):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(new, dict):
        return old.keys() == new.keys() and all(_same(old[key], new[key]) for key in new)
    try:
        return bool(old == new)
    except (TypeError, ValueError):  # the equality of objects that hold arrays has no truth value
        return False


def _warn(name: str, part: nnx.Pytree, old: Any, new: Any) -> None:
    fate = (
        "The call writes it once for each compiled program, not in every step."
        if type(old) in _GROWING and type(new) in _GROWING
        else "The new value is lost: a step calls a copy of the module, and the next one starts with the old value."
    )
    _log.warning(
        "The call of %s writes the plain attribute %r: before %s, after %s. %s Keep values that must last in an "
        "nnx.Variable that __init__ creates, such as self.calls = nnx.Variable(jnp.zeros((), jnp.int32)).",
        type(part).__name__, name, "nothing" if old is _MISSING else _short(old), _short(new), fate,
    )  # fmt: skip


def _short(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else repr(value)[:60]
