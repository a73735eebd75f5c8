"""Several processes that train one network: what they agree on, and batches of which each holds a part.

Processes that run one program must start the same steps, on arrays of the same shapes, in the same order; one that
stops, or has no batch left, would leave the others waiting for ever. So before each batch they tell each other what
they hold of it, and after each whether somebody wants to stop. With one process, nothing here does anything.
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
from resfit.trainer.placement import Placement

_ENDED = -1  # rows of a process that has no batch left


class Turn(NamedTuple):
    """A batch whose turn has come.

    Attributes:
      host: what this process holds of it; None if it has no batch left while others do.
      placed: the whole, on the devices.
      rows: of the whole, padding included.
      examples: of the whole.
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
        """The number of this process, and of all: the part of every batch that it reads."""
        return (0, 1) if self._exchange is None else (jax.process_index(), self._placement.processes)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Which of these flags are true in any of the processes."""
        if self._exchange is None:
            return flags
        return tuple(bool(told.any()) for told in self._tell(*flags).T)

    def of_first(self, value: int) -> int:
        """The value that the first process holds."""
        return value if self._exchange is None else int(self._tell(value)[0, 0])

    def turns(self, batches: Iterable[Batch], wanted: Callable[[Batch], Any]) -> Iterator[Turn]:
        """The batches, one after another, each put on the devices.

        Args:
          batches: this process's parts. Where they are of one size and the devices divide their sum, they stay where
            they are, one after another in the order of the processes; else every device gets all of them. A process
            that comes to its end goes on with nothing until the last one has.
          wanted: a batch -> what of it is put on the devices.

        Raises:
          DataError: if a process has no batch at all, or batches of another kind than the first process.
        """
        if self._exchange is None:
            for own in batches:
                placed = wanted(own)
                yield Turn(own, self._placement.place(placed), _rows(placed), own.size)
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
        """Lets the other processes know when the block fails in this one, so that they do not wait for it for ever."""
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
        """For an exception that every process raises at this place: none of them has to be told."""
        try:
            yield
        except BaseException as exception:
            self._told = exception
            raise

    def check_same(self, what: str, digests: Iterable[bytes], names: Iterable[str], remedy: str) -> None:
        """Compares something that all processes must hold alike.

        Raises:
          DataError: naming the first entry that differs.
        """
        if self._exchange is None:
            return
        mine = np.array([zlib.crc32(digest) for digest in digests], np.uint32).view(np.int32)
        found = multihost_utils.process_allgather(mine)
        for name, column in zip(names, np.transpose(found), strict=True):
            if (column != column[0]).any():
                with self.raising_together():
                    raise DataError(f"The processes hold different {what}: {name} is another one. {remedy}")

    def _tell(self, *values: int) -> np.ndarray:
        if self._exchange is None:
            raise DataError("There is one process, and nobody to tell.")
        told = self._exchange(np.array([0, *values, *(0 for _ in range(3 - len(values)))], np.int32))
        failed = np.flatnonzero(told[:, 0])
        if len(failed):
            raise ProcessFailed(
                f"Process {failed[0]} failed, and process {jax.process_index()} stops with it. Expected all processes "
                "to go on together. What went wrong stands in the output of that process."
            )
        return told[:, 1 : 1 + len(values)]

    def _check_kinds(self, kinds: np.ndarray, part: Any) -> None:
        if (kinds == kinds[0]).all():
            return
        other = int(np.flatnonzero(kinds != kinds[0])[0])
        mine = "no batch" if part is None else _described(part)
        with self.raising_together():
            raise DataError(
                f"The batches of process {other} are of another kind than those of process 0, or it has none at all; "
                f"process {jax.process_index()} holds {mine}. Expected the same arrays, of the same types and sizes "
                "after the first axis, in every process, and at least one batch in each."
            )


def _exchange() -> Callable[[np.ndarray], np.ndarray]:
    """A function that every process calls with a few numbers, and that returns those of all, (processes, numbers).

    They travel between CPUs, where those can be reached, and wait for no step that a GPU is still busy with.
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
    return len(jax.tree.leaves(part)[0])


def _examples(batch: Batch) -> int:
    return _rows(batch.x) if batch.mask is None else int(batch.mask.sum())


def _described(part: Any) -> str:
    return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(part))


def _kind(part: Any) -> int:
    """A number for the arrays of a part but for their rows, which tells whether the parts fit together."""
    if part is None:
        return 0
    leaves, structure = jax.tree.flatten(part)
    text = f"{structure} {[(str(leaf.dtype), leaf.shape[1:]) for leaf in leaves]}"
    return zlib.crc32(text.encode()) & 0x7FFFFFFF


def _gathered(part: Any, rows: int, counts: np.ndarray) -> Any:
    """The parts of all processes, one after another, in each of them.

    Args:
      part: this process's; of an earlier batch if it has no row of this one, to know what the others' look like.
      rows: how many of the part's rows belong to this batch.
      counts: of all processes.
    """
    most = int(counts.max())

    def gather(leaf: np.ndarray) -> np.ndarray:
        padded = np.zeros((most, *leaf.shape[1:]), leaf.dtype)
        padded[:rows] = leaf[:rows]
        parts = multihost_utils.process_allgather(padded)
        return np.concatenate([held[:n] for held, n in zip(parts, counts, strict=True)])

    return jax.tree.map(gather, part)
