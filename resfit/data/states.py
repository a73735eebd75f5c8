"""Lossless conversion of a loader's state to JSON values and arrays, without pickle."""

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
_DEEPEST = 100  # nested containers; JSON's own limit depends on the stack

# (place in the state, description of the value) -> the error to raise
Refused = Callable[[str, str], Exception]

EXPECTED = (
    "dicts, lists, tuples, sets, deques, plain values, bytes, NumPy arrays and scalars of numbers, text and dates, and "
    "JAX arrays"
)


def of_loader(place: str, what: str) -> DataError:
    """Return the error for a value of a loader's state_dict that a checkpoint cannot hold."""
    return DataError(
        f"{place} of the data is {what}, which a checkpoint cannot hold. Expected {EXPECTED}, or torch tensors. Change "
        "the loader's state_dict, or pass data without one: a resumed run then counts and skips batches."
    )


def packed(state: Any, refused: Refused = of_loader) -> Any:
    """Return a copy of a state as JSON values and arrays, from which `unpacked` restores an equal state.

    Plain JSON would turn tuples into lists, the keys of dicts into text, and NumPy scalars into floats.

    Args:
      state: plain values (int of any size, float, complex, bool, str, bytes, None), NumPy arrays and scalars except
        objects and records, JAX arrays and PRNG keys, torch tensors; and nested dicts, lists, tuples, sets and deques
        of such values.
      refused: a function that makes the error for any other value.

    Raises:
      DataError: for any other value; the message names its place. `refused` can make another error.

    Example:
      >>> unpacked(packed({0: (1, b"two"), "rows": np.arange(3)}))
      {0: (1, b'two'), 'rows': array([0, 1, 2])}
    """
    return _packed(state, "state_dict()", refused, 0)


def is_storable(state: Any) -> bool:
    """Return True if `packed` accepts the state."""
    try:
        packed(state)
    except DataError:
        return False
    return True


def _packed(state: Any, place: str, refused: Refused, depth: int) -> Any:
    kind = type(state)
    if depth > _DEEPEST:
        raise refused(place, f"nested in more than {_DEEPEST} containers, or in itself")

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
    if kind is str and any("\ud800" <= letter <= "\udfff" for letter in state):  # JSON may join two surrogates
        return {"str": _bytes(state.encode("utf-8", "surrogatepass"))}
    if kind in _PLAIN:
        return state
    if kind is complex:
        return {"complex": [state.real, state.imag]}
    if kind in (bytes, bytearray, np.bytes_):
        return {kind.__name__: _bytes(state)}
    if kind is np.str_:  # an array or str() would lose trailing zeros
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
    """Return True if the name of the dtype is enough to restore an array from its bytes."""
    if dtype.hasobject or dtype.names is not None or not dtype.itemsize:
        return False
    return np.dtype(str(dtype)) == dtype


def _dtype(state: Any) -> str:
    return f" of dtype {state.dtype}" if isinstance(state, np.ndarray | np.generic) else ""


def unpacked(state: Any) -> Any:
    """Restore a state that `packed` converted.

    Raises:
      CheckpointError: if this version of resfit does not know a kind of value in the packed state.
    """
    if type(state) in (*_PLAIN, int):
        return state
    ((kind, value),) = state.items()
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](unpacked(entry) for entry in value)
    if kind in _MAPPINGS:
        return _MAPPINGS[kind](_items(value))
    if kind in _UNPACKERS:
        return _UNPACKERS[kind](value)
    raise CheckpointError(
        f"A saved state contains the unknown kind {kind!r}. Expected a state that this version of resfit writes. "
        "Resume with the version that saved the checkpoint, or a newer one."
    )


def _items(pairs: Any) -> dict[Any, Any]:
    return {unpacked(key): unpacked(entry) for key, entry in pairs}


def _tensor(array: np.ndarray) -> Any:
    return load_package("torch", "the state of the data", "pip install torch").from_numpy(array.copy())


_UNPACKERS: dict[str, Callable[[Any], Any]] = {
    "deque": lambda value: collections.deque(unpacked(value[1]), value[0]),
    "defaultdict": lambda value: collections.defaultdict(_FACTORIES.get(value[0]), _items(value[1])),
    "array": lambda value: value,
    "scalar": lambda value: value[()],
    "int": lambda value: int(value, 16),
    "complex": lambda value: complex(*value),
    "str": lambda value: value.tobytes().decode("utf-8", "surrogatepass"),
    "bytes": lambda value: value.tobytes(),
    "bytearray": lambda value: bytearray(value.tobytes()),
    "bytes_": lambda value: np.bytes_(value.tobytes()),
    "str_": lambda value: np.str_(unpacked(value)),
    "jax": jnp.array,
    "key": lambda value: jax.random.wrap_key_data(jnp.array(value[1]), impl=value[0]),
    "tensor": _tensor,
}
