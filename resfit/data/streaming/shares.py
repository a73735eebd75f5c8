"""Which rows of an epoch each process reads."""

from collections.abc import Sequence
from typing import NamedTuple

from resfit.data.batches import Geometry


class Segment(NamedTuple):
    """Consecutive rows of a shard.

    Attributes:
      shard: its number.
      start: the first row.
      stop: the row after the last; None for all that come.
    """

    shard: int
    start: int = 0
    stop: int | None = None


def part(size: int, shard: tuple[int, int]) -> tuple[int, int]:
    """The rows of a batch of this size that process (index, count) reads: the first, and the one after the last."""
    index, count = shard
    return index * size // count, (index + 1) * size // count


def share(examples: int, geometry: Geometry) -> tuple[int, int]:
    """A stretch of rows for each process, so that together they fill every batch and each row is read once.

    Args:
      examples: rows of an epoch.
      geometry: how they are cut.

    Returns:
      The first row of this process, and the one after its last.

    Example:
      >>> [share(10, Geometry(batch_size=4, shard=(index, 2))) for index in range(2)]
      [(0, 5), (5, 10)]
    """
    index, count = geometry.shard
    full, rest = divmod(examples, geometry.batch_size)

    def rows(process: int) -> int:
        low, high = part(geometry.batch_size, (process, count))
        if geometry.pad:  # the rows of the last batch come first, what fills it up after them
            return full * (high - low) + min(max(rest - low, 0), high - low)
        last_low, last_high = part(rest, (process, count))
        return full * (high - low) + last_high - last_low

    first = sum(rows(process) for process in range(index))
    return first, first + rows(index)


def stretch(order: Sequence[int], lengths: Sequence[int], first: int, stop: int) -> list[Segment]:
    """The rows from `first` to `stop` of the shards laid end to end in this order.

    Args:
      order: the shards.
      lengths: rows of every shard.
      first: counted over all of them.
      stop: the row after the last.

    Example:
      >>> stretch([1, 0], [4, 3], 2, 5)
      [Segment(shard=1, start=2, stop=3), Segment(shard=0, start=0, stop=2)]
    """
    segments = []
    before = 0
    for shard in order:
        low, high = max(first - before, 0), min(stop - before, lengths[shard])
        if low < high:
            segments.append(Segment(shard, low, high))
        before += lengths[shard]
    return segments
