"""Arrays in a file that are read in parts: h5py, zarr, and any object with a shape that can be sliced."""

from typing import Any

import jax
import numpy as np

from resfit.data.tensors import library_of
from resfit.data.values import refuse_masked
from resfit.errors import DataError

# Their rows are in memory already, or `[a:b]` does not select rows.
_OTHERS = ("numpy", "jax", "jaxlib", "pandas", "polars", "scipy")


def is_stored(value: Any) -> bool:
    """Return True for an array that is not in memory: an object with a shape whose rows can be sliced."""
    if isinstance(value, np.ndarray | np.generic | jax.Array) or library_of(value) is not None:
        return False
    shape = getattr(value, "shape", None)
    if not hasattr(value, "__getitem__") or not isinstance(shape, tuple) or not shape:
        return False
    if any(kind.__module__.partition(".")[0] in _OTHERS for kind in type(value).__mro__):
        return False
    # A loader of batches can have the shape of its images.
    return not hasattr(value, "__len__") or bool(len(value) == shape[0])


class Stored:
    """The rows of an array that is not in memory. Only the requested rows are read.

    Rows in any order are read in ascending order, each once: h5py requires it, and a chunk of the file is decompressed
    once for all of its rows that are neighbors.

    Args:
      name: the name of the array, for errors.
      array: an object with a shape and `[a:b]`.
      rows: the range of the rows; by default all.

    Attributes:
      shape: the shape, (rows, ...).
      dtype: the dtype of the rows.

    Raises:
      DataError: if the array has no slices of rows; also on access, if a slice has another length than its range.
    """

    def __init__(self, name: str, array: Any, rows: range | None = None) -> None:
        self._name, self._array = name, array
        self._rows = range(int(array.shape[0])) if rows is None else rows
        self.shape = (len(self._rows), *map(int, array.shape[1:]))
        self.dtype = self._slice(0, min(1, int(array.shape[0]))).dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            first, last, step = rows.indices(len(self))
            start = self._rows.start
            return self._slice(start + first, start + max(first, last))[::step]
        ascending, places = np.unique(np.asarray(rows) + self._rows.start, return_inverse=True)
        if not len(ascending):
            return self._slice(0, 0)
        if hasattr(self._array, "oindex"):  # zarr would decompress a chunk for every slice
            return self._read(self._array.oindex[ascending], len(ascending))[places]
        runs = np.split(ascending, np.flatnonzero(np.diff(ascending) > 1) + 1)
        return np.concatenate([self._slice(int(run[0]), int(run[-1]) + 1) for run in runs])[places]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def part(self, rows: slice) -> "Stored":
        """Return a range of the rows, without reading them."""
        return Stored(self._name, self._array, self._rows[rows])

    def _slice(self, first: int, last: int) -> np.ndarray:
        try:
            rows = self._array[first:last]
        except TypeError as error:
            raise DataError(
                f"{self._name} is a {type(self._array).__name__} with a shape, and [{first}:{last}] raised {error}. "
                "Expected slices of rows. Pass a NumPy array, or a function that returns an iterator of batches."
            ) from error
        return self._read(rows, last - first)

    def _read(self, rows: Any, expected: int) -> np.ndarray:
        refuse_masked(self._name, rows)  # netCDF4 returns masked arrays
        array = np.asarray(rows)
        if array.shape[:1] != (expected,):
            raise DataError(
                f"{self._name} is a {type(self._array).__name__}, and a slice of {expected} rows has shape "
                f"{array.shape}. Expected one entry per row. Check that the file is complete, that nothing writes to "
                "it, and that [a:b] selects rows."
            )
        return array
