"""The distribution of the rows of an epoch among processes."""

from collections.abc import Sequence
from typing import NamedTuple

from resfit.data.batches import Geometry


class Segment(NamedTuple):
    """Consecutive rows of a shard.

    Attributes:
      shard: the number of the shard.
      start: the first row.
      stop: the row after the last one; None for the end of the shard.
    """

    shard: int
    start: int = 0
    stop: int | None = None


def part(size: int, shard: tuple[int, int]) -> tuple[int, int]:
    """Return (start, stop): the rows of a batch of this size that process `shard` = (index, count) reads."""
    index, count = shard
    return index * size // count, (index + 1) * size // count


def share(examples: int, geometry: Geometry) -> tuple[int, int]:
    """Return this process's range of rows; the ranges of all processes fill every batch and cover each row once.

    Args:
      examples: the number of rows of an epoch.
      geometry: how the rows are cut into batches.

    Returns:
      (start, stop): the first row of this process, and the row after the last one.

    Example:
      >>> [share(10, Geometry(batch_size=4, shard=(index, 2))) for index in range(2)]
      [(0, 5), (5, 10)]
    """
    index, count = geometry.shard
    full, rest = divmod(examples, geometry.batch_size)

    def rows(process: int) -> int:
        low, high = part(geometry.batch_size, (process, count))
        if geometry.pad:  # the last batch has its padding at the end
            return full * (high - low) + min(max(rest - low, 0), high - low)
        last_low, last_high = part(rest, (process, count))
        return full * (high - low) + last_high - last_low

    first = sum(rows(process) for process in range(index))
    return first, first + rows(index)


def stretch(order: Sequence[int], lengths: Sequence[int], first: int, stop: int) -> list[Segment]:
    """Return the segments that hold rows `first` to `stop` of the concatenated shards.

    Args:
      order: the shards in the order of concatenation.
      lengths: the number of rows of every shard.
      first: the first row, counted over all shards.
      stop: the row after the last one.

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
