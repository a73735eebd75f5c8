"""Somebody else's state as JSON values and arrays, and exactly the same state again: nothing is pickled or executed."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resfit._utils.optional_import import load_package
from resfit.errors import CheckpointError, DataError

_PLAIN = (type(None), bool, float, str)
_SEQUENCES: dict[str, type] = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}
_MAPPINGS: dict[str, Any] = {kind.__name__: kind for kind in (dict, collections.OrderedDict, collections.Counter)}
_FACTORIES = {kind.__name__: kind for kind in (int, float, bool, str, list, tuple, set, dict)}
_DEEPEST = 100  # of containers in one another; JSON's own limit depends on the stack

# (where in the state, what stands there) -> the error to raise
Refused = Callable[[str, str], Exception]

EXPECTED = (
    "dicts, lists, tuples, sets, deques, plain values, bytes, NumPy arrays and scalars of numbers, text and dates, and "
    "JAX arrays"
)


def of_loader(place: str, what: str) -> DataError:
    """The error for what a loader's state_dict holds and a checkpoint cannot."""
    return DataError(
        f"{place} of the data is {what}, which a checkpoint cannot hold. Expected {EXPECTED}, or torch tensors: change "
        "the loader's state_dict, or pass data without one, whose batches are counted and skipped."
    )


def packed(state: Any, refused: Refused = of_loader) -> Any:
    """Return a state as JSON values and arrays, of which `unpacked` makes the same again, in memory of its own.

    JSON alone would give back lists for tuples, text for the keys of dicts, and floats for NumPy's scalars.

    Args:
      state: plain values (int of any size, float, complex, bool, str, bytes, None), NumPy arrays and scalars but those
        of objects and records, JAX arrays and PRNG keys, torch tensors; and dicts, lists, tuples, sets and deques of
        them, in one another.
      refused: makes the error for anything else.

    Raises:
      DataError: naming where something else stands; or what `refused` makes.

    Example:
      >>> unpacked(packed({0: (1, b"two"), "rows": np.arange(3)}))
      {0: (1, b'two'), 'rows': array([0, 1, 2])}
    """
    return _packed(state, "state_dict()", refused, 0)


def is_storable(state: Any) -> bool:
    """Return True if `packed` takes the state."""
    try:
        packed(state)
    except DataError:
        return False
    return True


def _packed(state: Any, place: str, refused: Refused, depth: int) -> Any:
    kind = type(state)
    if depth > _DEEPEST:
        raise refused(place, f"in more than {_DEEPEST} containers, or in itself")

    def inner(value: Any, where: str) -> Any:
        return _packed(value, f"{place}{where}", refused, depth + 1)

    def items(state: Any) -> list[Any]:
        return [[inner(key, "'s key"), inner(value, f"[{key!r:.100}]")] for key, value in state.items()]

    if kind in _MAPPINGS.values():
        return {kind.__name__: items(state)}
    if kind in _SEQUENCES.values():
        return {kind.__name__: [inner(value, f"[{i}]") for i, value in enumerate(state)]}
    if kind is collections.deque:
        return {"deque": [state.maxlen, inner(list(state), "")]}
    if kind is collections.defaultdict:
        factory = getattr(state.default_factory, "__name__", None)
        if _FACTORIES.get(str(factory)) is not state.default_factory:
            raise refused(place, f"a defaultdict of {state.default_factory!r}")
        return {"defaultdict": [factory, items(state)]}
    value = _packed_value(state)
    if value is NotImplemented:
        raise refused(place, f"a {kind.__module__}.{kind.__qualname__}{_dtype(state)}")
    return value


def _packed_value(state: Any) -> Any:
    """Pack a value that is not a container; return NotImplemented for a value that a checkpoint cannot hold."""
    kind = type(state)
    if kind is int:
        return state if -(2**63) <= state < 2**63 else {"int": hex(state)}
    if kind is str and any("\ud800" <= letter <= "\udfff" for letter in state):  # of which JSON may join two
        return {"str": _bytes(state.encode("utf-8", "surrogatepass"))}
    if kind in _PLAIN:
        return state
    if kind is complex:
        return {"complex": [state.real, state.imag]}
    if kind in (bytes, bytearray, np.bytes_):
        return {kind.__name__: _bytes(state)}
    if kind is np.str_:  # an array or str() would lose zeros at its end
        return {"str_": _packed_value("".join(state))}
    if kind is np.ndarray or isinstance(state, np.generic):
        array = np.array(state)
        return {"array" if kind is np.ndarray else "scalar": array} if _is_stored(array.dtype) else NotImplemented
    if isinstance(state, jax.Array) and not isinstance(state, jax.core.Tracer):
        if jnp.issubdtype(state.dtype, jax.dtypes.prng_key):
            return {"key": [str(jax.random.key_impl(state)), np.array(jax.random.key_data(state))]}
        return {"jax": np.array(state)}
    if kind.__module__ == "torch" and kind.__name__ == "Tensor":
        return {"tensor": np.array(state.detach().cpu().numpy())}
    return NotImplemented


def _bytes(content: Any) -> np.ndarray:
    return np.frombuffer(content, np.uint8).copy()


def _is_stored(dtype: np.dtype[Any]) -> bool:
    """Return True if arrays of the dtype are bytes that the dtype's name describes."""
    if dtype.hasobject or dtype.names is not None or not dtype.itemsize:
        return False
    return np.dtype(str(dtype)) == dtype


def _dtype(state: Any) -> str:
    return f" of dtype {state.dtype}" if isinstance(state, np.ndarray | np.generic) else ""


def unpacked(state: Any) -> Any:
    """Return what was `packed`.

    Raises:
      CheckpointError: if this version of resfit does not know how it was packed.
    """
    if type(state) in (*_PLAIN, int):
        return state
    ((kind, value),) = state.items()
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](unpacked(entry) for entry in value)
    if kind in _MAPPINGS:
        return _MAPPINGS[kind](_items(value))
    match kind:
        case "deque":
            return collections.deque(unpacked(value[1]), value[0])
        case "defaultdict":
            return collections.defaultdict(_FACTORIES.get(value[0]), _items(value[1]))
        case "array":
            return value
        case "scalar":
            return value[()]
        case "int":
            return int(value, 16)
        case "complex":
            return complex(*value)
        case "str":
            return value.tobytes().decode("utf-8", "surrogatepass")
        case "bytes":
            return value.tobytes()
        case "bytearray":
            return bytearray(value.tobytes())
        case "bytes_":
            return np.bytes_(value.tobytes())
        case "str_":
            return np.str_(unpacked(value))
        case "jax":
            return jnp.array(value)
        case "key":
            return jax.random.wrap_key_data(jnp.array(value[1]), impl=value[0])
        case "tensor":
            return load_package("torch", "the state of the data", "pip install torch").from_numpy(value.copy())
    raise CheckpointError(f"A saved state holds a {kind!r}. Expected what this version of resfit writes.")


def _items(pairs: Any) -> dict[Any, Any]:
    return {unpacked(key): unpacked(entry) for key, entry in pairs}
