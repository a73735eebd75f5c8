"""Where somebody else's loader stands, as something that can be written down without pickling it."""

from typing import Any

import numpy as np

from resfit.errors import DataError
from resfit.packages import load_package

_PLAIN = (type(None), bool, int, float, str)


def packed(state: Any) -> Any:
    """A state in JSON values and arrays, of which `unpacked` makes the same again.

    Args:
      state: dicts, lists, tuples, plain values, bytes, NumPy arrays and torch tensors, in one another. JSON alone would
        give back lists for tuples, and text for the keys of dicts.

    Raises:
      DataError: naming where something else stands.

    Example:
      >>> unpacked(packed({0: (1, b"two"), "rows": np.arange(3)}))
      {0: (1, b'two'), 'rows': array([0, 1, 2])}
    """
    return _packed(state, "state_dict()")


def _packed(state: Any, place: str) -> Any:
    if type(state) in _PLAIN:
        return state
    if isinstance(state, np.ndarray | np.generic) and state.dtype.kind in "biufc":
        return {"scalar" if isinstance(state, np.generic) else "array": np.array(state)}
    if isinstance(state, bytes):
        return {"bytes": np.frombuffer(state, np.uint8).copy()}
    if isinstance(state, dict):
        items = [[_packed(key, f"{place}'s key"), _packed(value, f"{place}[{key!r}]")] for key, value in state.items()]
        return {"dict": items}
    if type(state) in (list, tuple):
        return {type(state).__name__: [_packed(value, f"{place}[{i}]") for i, value in enumerate(state)]}
    if type(state).__module__ == "torch" and type(state).__name__ == "Tensor":
        return {"tensor": np.array(state.detach().cpu().numpy())}
    raise DataError(
        f"{place} of the data is a {type(state).__module__}.{type(state).__qualname__}, which a checkpoint cannot "
        "hold. Expected dicts, lists and tuples of plain values, bytes, NumPy arrays and torch tensors: change the "
        "loader's state_dict, or pass data without one, whose batches are counted and skipped."
    )


def unpacked(state: Any) -> Any:
    """What was `packed`."""
    if type(state) in _PLAIN:
        return state
    ((kind, value),) = state.items()
    match kind:
        case "array":
            return value
        case "scalar":
            return value[()]
        case "bytes":
            return value.tobytes()
        case "dict":
            return {unpacked(key): unpacked(entry) for key, entry in value}
        case "list":
            return [unpacked(entry) for entry in value]
        case "tuple":
            return tuple(unpacked(entry) for entry in value)
        case "tensor":
            return load_package("torch", "the state of the data", "pip install torch").from_numpy(value.copy())
    raise DataError(f"The state of the data holds a {kind!r}. Expected what this resfit writes.")
