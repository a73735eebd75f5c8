"""A whole dataset in device memory, and rows of it that a step gathers itself."""

import weakref
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resfit.data.batches import EpochSource, Source, classes_of, description_of
from resfit.data.cores import cores
from resfit.data.sources.arrays import ArraySource
from resfit.data.streaming.ahead import in_order
from resfit.data.values import check_values
from resfit.errors import DataError

# The share of the free memory for the dataset; the rest is for the network, its gradients and activations.
_SHARE = 0.5
_AT_ONCE = 1 << 24  # bytes of a checksum


class Rows:
    """Some rows of an array on a device, gathered when they are read.

    JAX does not know the class: in a batch it is one leaf, with the shape and dtype of the gathered array.

    Args:
      array: (examples, ...), on a device.
      places: (rows,) int32, the numbers of the examples.

    Example:
      >>> rows = Rows(jnp.arange(0.0, 50.0, 10.0), np.array([3, 1], np.int32))
      >>> rows.shape, np.asarray(rows)
      ((2,), array([30., 10.], dtype=float32))
    """

    def __init__(self, array: jax.Array, places: np.ndarray) -> None:
        self.array, self.places = array, places
        self.shape, self.dtype = (len(places), *array.shape[1:]), array.dtype

    def __len__(self) -> int:
        return len(self.places)

    def devices(self) -> set[jax.Device]:
        """Return the device of the array."""
        return self.array.devices()

    def gathered(self) -> jax.Array:
        """Return the rows as an array on the device."""
        rows: jax.Array = _gather(self.array, self.places)
        return rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.gathered(), dtype)


class DeviceSource:
    """A `Source` that is copied to a device once; every batch is gathered there.

    The order, and therefore the result, is the same as from the host.

    Args:
      source: the examples.
      device: that holds them (default: the first).

    Attributes:
      in_step: True if a step gathers its batches itself: `take` then returns `Rows` in place of arrays.

    Raises:
      DataError: if the examples need more than half of the device's free memory, if the device reports it.
    """

    threads = 0
    checked = True

    def __init__(self, source: Source, device: jax.Device | None = None) -> None:
        if isinstance(source, EpochSource):
            raise DataError(
                f"cache='device' keeps one version of every example, but a {type(source).__name__} draws new ones in "
                "every epoch. Leave cache out, or augment on the device with compile(augment=...)."
            )
        self._of: weakref.ref[Any] | None = None
        if isinstance(source, ArraySource) and source.in_memory and type(source.x) is np.ndarray:
            self._of, self._digest = weakref.ref(source.x), _digest(source)
        self.in_step = False
        self.classes = classes_of(source)
        # The same as without the cache: a run can resume with or without it.
        self.description: Mapping[str, Any] = {"source": type(source).__name__} | description_of(source)
        self._length = len(source)
        device = device or jax.local_devices()[0]
        first = source.take(slice(0, 1))
        needed = self._length * sum(leaf.nbytes for leaf in jax.tree.leaves(first))
        limits = device.memory_stats() or {}
        free = limits.get("bytes_limit", np.inf) - limits.get("bytes_in_use", 0)
        if needed > _SHARE * free:
            raise DataError(
                f"cache='device' needs {needed / 1e9:.1f} GB for {self._length} examples, but {device} has "
                f"{free / 1e9:.1f} GB free. Expected at most half of the free memory. Leave cache out to send batches "
                "one by one."
            )
        arrays = source.take(slice(0, self._length))
        if not getattr(source, "checked", False):
            check_values(arrays[0], arrays[1])
        self.labels = arrays[1] if source.labels is None else source.labels
        if device.platform == "cpu":  # a put can share the memory of the caller, who may change the array in a run
            arrays = jax.tree.map(np.array, arrays)
        self._arrays: Any = jax.device_put(arrays, device)

    def holds(self, source: ArraySource) -> bool:
        """Return True if a source has the same array of inputs, and no input, label or weight has changed since."""
        same = self._of is not None and self._of() is source.x and source.in_memory
        return same and self._digest == _digest(source)

    def release(self) -> None:
        """Give the memory of the device back; no example can be taken any more."""
        self._arrays = self._of = None

    def __len__(self) -> int:
        return self._length

    def take(self, rows: slice | np.ndarray) -> tuple[Any, Any, Any]:
        if isinstance(rows, slice):
            rows = np.arange(self._length)[rows]
        places = rows.astype(np.int32)
        taken: tuple[Any, Any, Any] = (
            jax.tree.map(lambda array: Rows(array, places), self._arrays)
            if self.in_step
            else _gather(self._arrays, places)
        )
        return taken


@jax.jit
def _gather(arrays: Any, places: Any) -> Any:
    """Return these rows of every array."""
    return jax.tree.map(lambda array: jnp.take(array, places, axis=0), arrays)


def _digest(source: ArraySource) -> Any:
    """Return a checksum of every input, label and weight, which costs less time than a copy."""
    return jax.tree.map(_checksums, (source.x, source.labels, source.weight))


def _checksums(array: np.ndarray) -> tuple[Any, ...]:
    rows = max(1, _AT_ONCE // max(1, array[0].nbytes))
    parts = (array[first : first + rows] for first in range(0, len(array), rows))
    crc = lambda part: zlib.crc32(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)  # noqa: E731
    return array.shape, str(array.dtype), *in_order(crc, parts, cores() if array.nbytes > _AT_ONCE else 0)
