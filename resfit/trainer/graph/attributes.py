"""Find plain Python attributes that a call writes: every step starts with their old values again."""

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resfit.errors import ModuleError
from resfit.nets.modes import MODE_KEYWORDS
from resfit.trainer.graph.explain import explained_trace

_log = logging.getLogger("resfit")
_MISSING = object()
_GROWING = (list, dict, set)
# Values whose equality says if they changed. Other objects can be equal and compare as unequal.
_COMPARABLE = (bool, int, float, complex, str, bytes, set, frozenset, np.generic, np.ndarray)
_REMEDY = (
    "Keep values that must last in an nnx.Variable that __init__ creates, such as "
    "self.calls = nnx.Variable(jnp.zeros((), jnp.int32)); to look at an activation, use "
    "self.sow(nnx.Intermediate, 'name', value)."
)


class Write(NamedTuple):
    """A plain attribute whose value a call changed."""

    path: tuple[Any, ...]  # of the part that holds it
    part: nnx.Pytree
    name: str
    old: Any
    new: Any

    @property
    def full_name(self) -> str:
        """The dotted path of the attribute."""
        return ".".join(map(str, (*self.path, self.name)))


def called(make: Callable[[], Any], call: Callable[[Any], Any], known: set[str] | None = None) -> tuple[Any, Any]:
    """Call a module that a step makes, and check the plain attributes that the call writes.

    Variables, Intermediates and other data of NNX may change: a step reads them afterwards. Mode flags may change too,
    because a call sets them before it reads them, and values of `functools.cached_property`, which are computed again.
    A value that the first call writes and a second call leaves as it is, such as a cache, gives a warning.

    Args:
      make: returns a new copy of the module, in the trace of the caller.
      call: module -> result. It is called a second time, and not run, if the first call wrote plain attributes.
      known: names of attributes without a warning; the names of new warnings are added.

    Returns:
      (the module after the call, the result).

    Raises:
      ModuleError: if the call writes an array, or a value that changes from call to call; see also `explained_trace`.

    Example:
      >>> called(lambda: nnx.Dropout(0.5, deterministic=True), lambda module: module(jnp.ones(2)))[1]
      Array([1., 1.], dtype=float32)
    """
    module = make()
    try:
        with explained_trace(), _writes(module) as found:
            result = call(module)
    except ValueError as error:  # of NNX, for arrays that are not traced
        if "to static attribute" not in str(error):
            raise
        raise ModuleError(
            f"The call writes an array to a plain attribute: {str(error).splitlines()[0].rstrip(':')} A step calls a "
            f"copy of the module, so the array is lost. {_REMEDY}"
        ) from error
    known = set() if known is None else known
    new = [write for write in found if write.full_name not in known]
    if new:
        _check(new, make, call)
        for write in new:
            known.add(write.full_name)
            _log.warning("%s %s %s", _sentence(write), _fate(write), _REMEDY)
    return module, result


@contextlib.contextmanager
def _writes(module: Any) -> Iterator[list[Write]]:
    """Collect the plain attributes of a module that change inside the context."""
    parts = [(path, part, _plain(part)) for path, part in nnx.iter_graph(module) if isinstance(part, nnx.Pytree)]
    found: list[Write] = []
    yield found
    for path, part, before in parts:
        for name, (value, content) in _plain(part).items():
            old, old_content = before.get(name, (_MISSING, None))
            if not (_same(old, value) and _same(old_content, content)):
                found.append(Write(path, part, name, old if content is None else old_content, value))


def _check(writes: list[Write], make: Callable[[], Any], call: Callable[[Any], Any]) -> None:
    """Raise if one of these writes holds an array, or a second call would change its value again."""
    for write in writes:
        if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(write.new)):
            raise ModuleError(f"{_sentence(write)} A step calls a copy of the module, so the array is lost. {_REMEDY}")
    again: list[Write] = []
    sentences = {write.full_name: _sentence(write) for write in writes}  # a list grows again in the second call

    def second() -> None:
        module = make()
        parts = dict(nnx.iter_graph(module))
        for write in writes:
            setattr(parts[write.path], write.name, nnx.static(write.new))
        with _writes(module) as found:
            call(module)
        again.extend(found)

    # A trace must not get the operations of the second call; without a trace, the call may need values.
    if isinstance(jnp.zeros(()), jax.core.Tracer):
        jax.eval_shape(second)
    else:
        second()
    later = {write.full_name: write.new for write in again if _comparable(write.new)}
    for write in writes:
        if write.full_name in later:
            raise ModuleError(
                f"{sentences[write.full_name]} A second call would write {_short(later[write.full_name])}, but every "
                f"step calls a new copy of the module, which has the old value. {_REMEDY}"
            )


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
    if type(old) is not type(new) or isinstance(new, jax.Array):
        return False
    if isinstance(new, np.ndarray):
        return old.dtype == new.dtype and np.array_equal(old, new)
    if isinstance(new, list | tuple):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(new, dict):
        return old.keys() == new.keys() and all(_same(old[key], new[key]) for key in new)
    try:
        return bool(old == new)
    except (TypeError, ValueError):  # the equality of objects that hold arrays has no truth value
        return False


def _comparable(value: Any) -> bool:
    return all(isinstance(leaf, _COMPARABLE) for leaf in jax.tree.leaves(value))


def _sentence(write: Write) -> str:
    before = "nothing" if write.old is _MISSING else _short(write.old)
    return (
        f"The call of {type(write.part).__name__} writes the plain attribute {write.full_name!r}: before {before}, "
        f"after {_short(write.new)}."
    )


def _fate(write: Write) -> str:
    if type(write.old) in _GROWING and type(write.new) in _GROWING:
        return "The call writes it once for each compiled program, not in every step."
    return "The new value is lost: a step calls a copy of the module, and the next one starts with the old value."


def _short(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else repr(value)[:60]
