"""Several processes that train one network: their agreement, and batches of which each process holds a part.

All processes must start the same steps, on arrays of the same shapes, in the same order. If one process stops, or has
no batch left, the others wait forever. So before each batch the processes exchange the sizes of their parts, and after
each batch the requests to stop. With one process, this module does nothing.
"""

import contextlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resfit.data.batches import Batch
from resfit.errors import DataError, ProcessFailed
from resfit.trainer.devices.placement import Placement

_ENDED = -1  # the number of rows of a process that has no batch left


class Turn(NamedTuple):
    """The next batch of all processes.

    Attributes:
      host: the part of this process; None if it has no batch left while others do.
      placed: the whole batch, on the devices.
      rows: of the whole batch, padding included.
      examples: of the whole batch.
    """

    host: Batch | None
    placed: Any
    rows: int
    examples: int


class Processes:
    """The processes of a run.

    Args:
      placement: of the run.
    """

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._told: BaseException | None = None
        self._exchange = _exchange() if placement.processes > 1 else None

    @property
    def shard(self) -> tuple[int, int]:
        """(index of this process, number of processes): the part of every batch that it reads."""
        return (0, 1) if self._exchange is None else (jax.process_index(), self._placement.processes)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return, for each flag, True if it is true in any process."""
        if self._exchange is None:
            return flags
        return tuple(bool(told.any()) for told in self._tell(*flags).T)

    def of_first(self, value: int) -> int:
        """Return the value of the first process."""
        return value if self._exchange is None else int(self._tell(value)[0, 0])

    def turns(self, batches: Iterable[Batch], wanted: Callable[[Batch], Any]) -> Iterator[Turn]:
        """Yield the batches of all processes, placed on the devices.

        Args:
          batches: the parts of this process. If the parts of a batch have equal sizes and the devices divide the whole,
            each part stays on the devices of its process, in the order of the processes; otherwise every device gets
            the whole batch. A process without batches takes part until the last process has none.
          wanted: batch -> the part of it that steps read.

        Raises:
          DataError: if a process has no batch at all, or batches of another kind than the first process.
        """
        if self._exchange is None:
            for own in batches:
                yield Turn(own, self._placement.place(wanted(own)), _rows(own.x), own.size)
            return
        iterator, part = iter(batches), None
        while True:
            batch: Batch | None = next(iterator, None)
            if batch is not None:
                part = wanted(batch)
            rows = _ENDED if batch is None else _rows(part)
            told = self._tell(rows, 0 if batch is None else _examples(batch), _kind(part))
            if (told[:, 0] == _ENDED).all():
                return
            self._check_kinds(told[:, 2], part)
            counts = np.maximum(told[:, 0], 0)
            total = int(counts.sum())
            if (counts == counts[0]).all() and self._placement.divides(total):
                placed = self._placement.join(part)
            else:
                placed = self._placement.replicate(_gathered(part, max(rows, 0), counts))
            yield Turn(batch, placed, total, int(told[:, 1].sum()))

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        """Tell the other processes if the block fails in this one, so that they do not wait for it forever."""
        try:
            yield
        except (GeneratorExit, ProcessFailed):
            raise
        except BaseException as exception:
            if self._exchange is not None and exception is not self._told:
                self._told = exception
                self._exchange(np.array([1, 0, 0, 0], np.int32))
            raise

    @contextlib.contextmanager
    def raising_together(self) -> Iterator[None]:
        """Mark an exception that every process raises at this place, so that no process reports it to the others."""
        try:
            yield
        except BaseException as exception:
            self._told = exception
            raise

    def check_same(self, what: str, digests: Iterable[bytes], names: Iterable[str], remedy: str) -> None:
        """Raise if the processes hold different values.

        Args:
          what: the values, in words.
          digests: of each value.
          names: of each value.
          remedy: the end of the message.

        Raises:
          DataError: with the first name whose values differ.
        """
        if self._exchange is None:
            return
        mine = np.array([zlib.crc32(digest) for digest in digests], np.uint32).view(np.int32)
        found = multihost_utils.process_allgather(mine)
        for name, column in zip(names, np.transpose(found), strict=True):
            if (column != column[0]).any():
                with self.raising_together():
                    raise DataError(f"The processes hold different {what}: {name} differs. {remedy}")

    def _tell(self, *values: int) -> np.ndarray:
        if self._exchange is None:
            raise DataError("There is only one process. Expected several.")
        told = self._exchange(np.array([0, *values, *(0 for _ in range(3 - len(values)))], np.int32))
        failed = np.flatnonzero(told[:, 0])
        if len(failed):
            raise ProcessFailed(
                f"Process {failed[0]} failed, and process {jax.process_index()} stops with it. Expected all processes "
                f"to continue. The output of process {failed[0]} has the error."
            )
        return told[:, 1 : 1 + len(values)]

    def _check_kinds(self, kinds: np.ndarray, part: Any) -> None:
        if (kinds == kinds[0]).all():
            return
        other = int(np.flatnonzero(kinds != kinds[0])[0])
        mine = "no batch" if part is None else _described(part)
        with self.raising_together():
            raise DataError(
                f"The batches of process {other} are of another kind than those of process 0, or it has no batch; "
                f"process {jax.process_index()} holds {mine}. Expected at least one batch in every process, with the "
                "same arrays, of the same dtypes and sizes after the first axis."
            )


def _exchange() -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that every process calls with a few numbers, and that returns all, (processes, numbers).

    The exchange uses the CPUs if JAX knows them, and so does not wait for a step that a GPU still runs.
    """
    count = jax.process_count()
    firsts: dict[int, jax.Device] = {}
    for device in jax.devices("cpu"):
        firsts.setdefault(device.process_index, device)
    if len(firsts) < count:
        return multihost_utils.process_allgather
    mesh = Mesh(np.array([firsts[i] for i in range(count)]), ("process",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("process")), NamedSharding(mesh, PartitionSpec())
    gather = jax.jit(lambda numbers: numbers, out_shardings=whole)
    return lambda numbers: np.asarray(gather(jax.make_array_from_process_local_data(split, numbers[None])))


def _rows(part: Any) -> int:
    return len(part if isinstance(part, np.ndarray) else jax.tree.leaves(part)[0])


def _examples(batch: Batch) -> int:
    return _rows(batch.x) if batch.mask is None else int(batch.mask.sum())


def _described(part: Any) -> str:
    return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(part))


def _kind(part: Any) -> int:
    """Return a number that is equal for parts of the same arrays, whatever their number of rows."""
    if part is None:
        return 0
    leaves, structure = jax.tree.flatten(part)
    text = f"{structure} {[(str(leaf.dtype), leaf.shape[1:]) for leaf in leaves]}"
    return zlib.crc32(text.encode()) & 0x7FFFFFFF


def _gathered(part: Any, rows: int, counts: np.ndarray) -> Any:
    """Return the parts of all processes, in their order.

    Args:
      part: of this process; an earlier part, for its dtypes and shapes, if this process has no batch left.
      rows: the number of rows of the part that belong to this batch.
      counts: the numbers of rows of all processes.
    """
    most = int(counts.max())

    def gather(leaf: np.ndarray) -> np.ndarray:
        padded = np.zeros((most, *leaf.shape[1:]), leaf.dtype)
        padded[:rows] = leaf[:rows]
        parts = multihost_utils.process_allgather(padded)
        return np.concatenate([held[:n] for held, n in zip(parts, counts, strict=True)])

    return jax.tree.map(gather, part)
