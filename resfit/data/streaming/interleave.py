"""Reading several shards in turns, from any row on."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Place(NamedTuple):
    """Where the reading of several shards stands.

    Attributes:
      open: (shard, rows of it that were read) of each shard that is being read.
      turn: which of them gives the next row.
      following: the shard that takes the place of the next one to end.
    """

    open: tuple[tuple[int, int], ...]
    turn: int
    following: int


def beginning(shards: int, width: int) -> Place:
    """Nothing was read yet: the first `width` shards are open."""
    width = min(width, shards)
    return Place(tuple((shard, 0) for shard in range(width)), 0, width)


def advance(place: Place, lengths: Sequence[int], rows: int) -> Place:
    """Where the reading stands so many rows later, reckoned without reading.

    Args:
      place: where it stands now.
      lengths: of every shard.
      rows: how many.

    Example:
      >>> advance(beginning(3, width=2), [1, 5, 5], 4)  # 0 1 then, shard 0 having ended, 2 1
      Place(open=((2, 1), (1, 2)), turn=0, following=3)
    """
    opened, turn, following = list(place.open), place.turn, place.following
    while opened:
        shard, read = opened[turn]
        if read == lengths[shard]:
            opened, turn, following = _replaced(opened, turn, following, len(lengths))
            continue
        # As many whole rounds as no shard ends in, else a single row.
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
    """Rows of the open shards in turns; a shard that ends is followed by the next one.

    Args:
      place: where to begin.
      shards: how many there are.
      read: (shard, row) -> the rows of the shard from there on.

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
    """The shard whose turn it is has ended: the next one takes its place, or those that are left move up."""
    if following < shards:
        return [*opened[:turn], (following, 0), *opened[turn + 1 :]], turn, following + 1
    left = [*opened[:turn], *opened[turn + 1 :]]
    return left, turn % len(left) if left else 0, following
