"""A whole dataset in device memory."""

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


class DeviceSource:
    """A `Source` that is copied to the first device once; every batch is gathered there.

    The order, and therefore the result, is the same as from the host.

    Args:
      source: the examples.

    Raises:
      DataError: if the examples need more than half of the device's free memory, if the device reports it.
    """

    threads = 0
    checked = True

    def __init__(self, source: Source) -> None:
        if isinstance(source, EpochSource):
            raise DataError(
                f"cache='device' keeps one version of every example, but a {type(source).__name__} draws new ones in "
                "every epoch. Leave cache out, or augment on the device with compile(augment=...)."
            )
        self._of: weakref.ref[Any] | None = None
        if isinstance(source, ArraySource) and source.in_memory and type(source.x) is np.ndarray:
            self._of, self._digest = weakref.ref(source.x), _digest(source)
        self.labels = source.labels
        self.classes = classes_of(source)
        # The same as without the cache: a run can resume with or without it.
        self.description: Mapping[str, Any] = {"source": type(source).__name__} | description_of(source)
        self._length = len(source)
        device = jax.local_devices()[0]
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
        self._arrays: Any = jax.device_put(arrays, device)
        self._gather = jax.jit(lambda arrays, rows: jax.tree.map(lambda a: jnp.take(a, rows, axis=0), arrays))

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
        taken: tuple[Any, Any, Any] = self._gather(self._arrays, rows.astype(np.int32))
        return taken


def _digest(source: ArraySource) -> Any:
    """Return a checksum of every input, label and weight, which costs less time than a copy."""
    return jax.tree.map(_checksums, (source.x, source.labels, source.weight))


def _checksums(array: np.ndarray) -> tuple[Any, ...]:
    rows = max(1, _AT_ONCE // max(1, array[0].nbytes))
    parts = (array[first : first + rows] for first in range(0, len(array), rows))
    crc = lambda part: zlib.crc32(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)  # noqa: E731
    return array.shape, str(array.dtype), *in_order(crc, parts, cores() if array.nbytes > _AT_ONCE else 0)
