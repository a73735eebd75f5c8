"""Interleaved reading of several shards, from any row."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Place(NamedTuple):
    """A position in the interleaved reading of several shards.

    Attributes:
      open: (shard, number of rows read) of each open shard.
      turn: the index in `open` of the shard that gives the next row.
      following: the shard that replaces the next shard to end.
    """

    open: tuple[tuple[int, int], ...]
    turn: int
    following: int


def beginning(shards: int, width: int) -> Place:
    """Return the initial position: the first `width` shards are open."""
    width = min(width, shards)
    return Place(tuple((shard, 0) for shard in range(width)), 0, width)


def advance(place: Place, lengths: Sequence[int], rows: int) -> Place:
    """Return the position `rows` rows later, computed without reading.

    Args:
      place: the current position.
      lengths: the number of rows of every shard.
      rows: the number of rows to advance.

    Example:
      >>> advance(beginning(3, width=2), [1, 5, 5], 4)  # shards 0 and 1; after the end of shard 0, shards 2 and 1
      Place(open=((2, 1), (1, 2)), turn=0, following=3)
    """
    opened, turn, following = list(place.open), place.turn, place.following
    while opened:
        shard, read = opened[turn]
        if read == lengths[shard]:
            opened, turn, following = _replaced(opened, turn, following, len(lengths))
            continue
        # Advance by the whole rounds in which no shard ends, else by a single row.
        rounds = min(min(lengths[shard] - read for shard, read in opened), rows // len(opened)) if turn == 0 else 0
        if rounds:
            opened = [(shard, read + rounds) for shard, read in opened]
            rows -= rounds * len(opened)
        elif rows:
            opened[turn] = (shard, read + 1)
            rows -= 1
            turn = (turn + 1) % len(opened)
        else:
            break
    return Place(tuple(opened), turn, following)


def interleave(place: Place, shards: int, read: Callable[[int, int], Iterator[T]]) -> Iterator[T]:
    """Iterate over the rows of the open shards in turn; the next shard replaces a shard that ends.

    Args:
      place: the initial position.
      shards: the number of shards.
      read: (shard, row) -> the rows of the shard, starting at `row`.

    Example:
      >>> "".join(interleave(beginning(3, width=2), 3, lambda shard, row: iter(["ad", "bbb", "cc"][shard][row:])))
      'abdbcbc'
    """
    opened, turn, following = list(place.open), place.turn, place.following
    streams: dict[int, Iterator[T]] = {}
    while opened:
        shard, row = opened[turn]
        if shard not in streams:
            streams[shard] = read(shard, row)
        for item in streams[shard]:
            yield item
            turn = (turn + 1) % len(opened)
            break
        else:
            del streams[shard]
            opened, turn, following = _replaced(opened, turn, following, shards)


def _replaced(
    opened: list[tuple[int, int]], turn: int, following: int, shards: int
) -> tuple[list[tuple[int, int]], int, int]:
    """Replace the current shard, which has ended, by the next one; remove it if no shard follows."""
    if following < shards:
        return [*opened[:turn], (following, 0), *opened[turn + 1 :]], turn, following + 1
    left = [*opened[:turn], *opened[turn + 1 :]]
    return left, turn % len(left) if left else 0, following
