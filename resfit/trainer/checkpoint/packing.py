"""Many arrays packed into one, because a file system and Orbax have a cost per array above that of its bytes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# name -> dtype, shape, first byte
Index = dict[str, tuple[str, list[int], int]]


def pack(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Index]:
    """Lay arrays end to end.

    Args:
      arrays: by name.

    Returns:
      Their bytes, at least one, and the index of the arrays in them, which is JSON.

    Example:
      >>> content, index = pack({"a": np.ones((2, 3), np.float32), "b": np.int64(7)})
      >>> content.shape, index["b"]
      ((32,), ('int64', [], 24))
    """
    index, size = {}, 0
    for name, array in arrays.items():
        index[name] = (str(array.dtype), list(array.shape), size)
        size += array.nbytes
    content = np.zeros(max(size, 1), np.uint8)
    for name, array in arrays.items():
        first = index[name][2]
        content[first : first + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return content, index


def unpack(content: np.ndarray, index: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    """Return the arrays, each in separate memory.

    Args:
      content: their bytes.
      index: of the arrays.

    Raises:
      ValueError: if the index names a dtype of objects, or bytes outside of the content.

    Example:
      >>> unpack(*pack({"a": np.arange(3)}))
      {'a': array([0, 1, 2])}
    """
    return {name: _one(content, np.dtype(dtype), shape, first) for name, (dtype, shape, first) in index.items()}


def _one(content: np.ndarray, dtype: np.dtype[Any], shape: Sequence[int], first: int) -> np.ndarray:
    # The index comes from a file. NumPy would treat bytes as pointers, and read before the first byte.
    last = first + math.prod(shape) * dtype.itemsize
    if dtype.hasobject or min(first, *shape, 0) < 0 or last > len(content):
        raise ValueError(f"There is no {dtype} of shape {shape} at byte {first} of {len(content)}.")
    return content[first:last].copy().view(dtype).reshape(shape)
