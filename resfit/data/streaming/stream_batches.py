"""The batches of a stream of shards: read, shuffle, decode, stack."""

from __future__ import annotations

import itertools
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from resfit._utils.checks import int_from
from resfit.data.batches import Batch, Geometry, classes_of, description_of
from resfit.data.streaming.ahead import in_order, prefetch
from resfit.data.streaming.interleave import advance, beginning, interleave
from resfit.data.streaming.retry import ReadingFailed, read_on
from resfit.data.streaming.shares import Segment, part, share, stretch
from resfit.data.values import check_values
from resfit.errors import BadRecordError, DataError

_log = logging.getLogger("resfit")

T = TypeVar("T")

_READ_AT_ONCE = 64  # rows per piece of a reading thread
_DECODED_AT_ONCE = 32  # rows per piece of a decoding thread


class Shards(Protocol):
    """The shards of a stream: `read` yields encoded records, and `decode` turns a record into an example."""

    def __len__(self) -> int:
        """Return the number of shards."""

    @property
    def examples(self) -> int | None:
        """The total number of rows, or None if it is unknown; an epoch with another number raises."""

    def lengths(self, needed: bool) -> Sequence[int] | None:
        """Return the number of rows of each shard or None; with `needed`, this may open every file."""

    def name(self, shard: int) -> str:
        """Return the name of a shard for messages."""

    def read(self, shard: int, start: int) -> Iterator[Any]:
        """Iterate over the records of a shard, starting at row `start`. Each open shard is read in its own thread."""

    def decode(self, record: Any, key: tuple[int, int] | None, place: tuple[int, int]) -> Any:
        """Decode a record to an example. Several threads call this method.

        Args:
          record: a record from `read`.
          key: (seed, epoch), which determine random values together with `place`; None for no random values.
          place: (shard, row) of the record.

        Raises:
          BadRecordError: if the record is unusable. Any other error ends the epoch.
        """

    def stack(self, examples: list[Any]) -> tuple[Any, Any, Any]:
        """Stack examples to (x, y, weight); y and weight can be None."""


class Settings(NamedTuple):
    """The arguments of `ShardStream`."""

    window: int
    interleave: int
    max_bad_records: int
    retries: int
    threads: int


class StreamRow(NamedTuple):
    """A record, encoded or decoded, and its position."""

    shard: int
    row: int
    record: Any


class BadRow(NamedTuple):
    """The position of an unusable record, and its error."""

    shard: int
    row: int
    error: BadRecordError


class EpochCounters:
    """Counters of an epoch: `rows` read (including skipped ones) and `bad` records."""

    def __init__(self) -> None:
        self.rows = self.bad = 0


class StreamBatches:
    """The batches of a `ShardStream`.

    Args:
      shards: the shards to read.
      settings: how to read them.
      geometry: how to cut the examples into batches.

    Raises:
      DataError: if several processes train and the stream cannot be split.
    """

    labels = None

    def __init__(self, shards: Shards, settings: Settings, geometry: Geometry) -> None:
        size, (_, processes) = geometry.batch_size, geometry.shard
        int_from(processes, "batch_size", size, DataError)
        self._shards, self._settings, self._geometry = shards, settings, geometry
        self._name = type(shards).__name__
        self.classes = classes_of(shards)
        self._lengths = shards.lengths(processes > 1)
        promised = shards.examples if self._lengths is None else sum(self._lengths)
        self._promised = promised
        self._low, self._high = part(size, geometry.shard)
        self._bad = 0
        self._warned = False
        # With bad records allowed, the number of examples is unknown until all records are decoded.
        self.examples: int | None = None
        self.steps: int | None = None
        if promised is not None and not settings.max_bad_records:
            rest = promised % size
            dropped = rest if promised > size and (geometry.drop_remainder or rest < geometry.min_batch) else 0
            self.examples = promised - dropped
            self.steps = -(-self.examples // size)
        if processes > 1:
            self._check_sharing(processes)

    def _check_sharing(self, processes: int) -> None:
        if self._settings.max_bad_records:
            raise DataError(
                f"Got max_bad_records={self._settings.max_bad_records} with {processes} processes. Expected 0: "
                "processes that skip different records have different numbers of steps and wait for each other "
                "forever. Write the data again without the bad records."
            )
        if self._lengths is None:
            raise DataError(
                f"{processes} processes share a stream, but the {self._name} does not know the number of rows of its "
                "shards. Expected shards with known lengths, such as parquet files that are neither filtered nor "
                "mapped in batches."
            )

    @property
    def report(self) -> Mapping[str, float]:
        """The number of records skipped in this epoch so far, if skipping is allowed."""
        return {"bad_records": self._bad} if self._settings.max_bad_records else {}

    @property
    def description(self) -> Mapping[str, Any]:
        ours = {
            "shards": len(self._shards),
            "rows": None if self._lengths is None else zlib.crc32(repr(list(self._lengths)).encode()),
        }
        order = {name: getattr(self._settings, name) for name in ("window", "interleave", "max_bad_records")}
        return {"source": self._name, **ours, **order, **description_of(self._shards)}

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        self._bad = 0
        made = self._batches(epoch, start)
        for batch, bad in prefetch(made) if self._settings.threads else made:
            self._bad = bad
            if batch is not None:
                yield batch

    # --- cutting ------------------------------------------------------------------------------------------------------

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[Batch | None, int]]:
        """Iterate over (batch, number of bad records so far); the last batch is None."""
        counters = EpochCounters()
        rows = self._high - self._low
        held: list[StreamRow] = []
        last: StreamRow | None = None
        number = start
        for example in self._good(epoch, start * rows, counters):
            held.append(example)
            last = example
            if len(held) == rows:
                yield self._batch(held, self._size(number), epoch), counters.bad
                held = []
                number += 1
        if not number and not held:
            raise DataError(
                f"The {self._name} yielded no usable example in epoch {epoch}: {counters.rows} rows were read, "
                f"{counters.bad} of them bad. Expected at least one. Check the data."
            )
        rest = len(held) if self._geometry.shard[1] == 1 else self._size(number)
        if rest and not self._dropped(rest, number):
            yield self._last_batch(held, last, rest, epoch), counters.bad
        yield None, counters.bad

    def _last_batch(self, held: list[StreamRow], last: StreamRow | None, rest: int, epoch: int) -> Batch:
        if last is None:
            raise DataError(
                f"The last batch has {rest} example(s), too few for {self._geometry.shard[1]} processes. Choose "
                "another batch_size, or pass drop_remainder=True."
            )
        # Padding repeats the last example, because a network that handles real rows handles a copy of one.
        filler = [last] * (self._high - self._low - len(held)) if self._geometry.pad else []
        return self._batch(held + filler, rest, epoch)

    def _size(self, number: int) -> int:
        """Return the number of examples of a batch over all processes, for a batch that is full in this process."""
        size = self._geometry.batch_size
        if self._geometry.shard[1] == 1:
            return size
        return min(size, max(0, (self.examples or 0) - number * size))

    def _dropped(self, rest: int, full: int) -> bool:
        """Return True if a last batch of `rest` examples is dropped after `full` full batches."""
        if self._geometry.drop_remainder:
            if not full:
                raise DataError(
                    f"drop_remainder=True with {rest} examples and batch_size={self._geometry.batch_size} leaves no "
                    "batch. Leave drop_remainder out, or choose a smaller batch_size."
                )
            return True
        if not full or rest >= self._geometry.min_batch:
            return False
        if not self._warned:
            self._warned = True
            _log.warning(
                "The last batch of an epoch has %d example(s), too few for BatchNorm, and is dropped. Another "
                "batch_size avoids this; it is %d now.", rest, self._geometry.batch_size,
            )  # fmt: skip
        return True

    def _batch(self, rows: list[StreamRow], size: int, epoch: int) -> Batch:
        x, y, weight = self._shards.stack([row.record for row in rows])
        if any(len(leaf) != len(rows) for leaf in jax.tree.leaves((x, y, weight))):
            raise DataError(
                f"{self._name}.stack returned arrays of other lengths for {len(rows)} examples. Expected one row per "
                "example in every array."
            )
        check_values(x, y)
        mask = np.arange(self._low, self._high) < size if self._geometry.pad else None
        numbers = [(row.shard, row.row, epoch) for row in rows]
        return Batch(x, y, weight, mask, size, np.array(numbers, np.int32) if self._geometry.numbered else None)

    # --- decoding -----------------------------------------------------------------------------------------------------

    def _good(self, epoch: int, skip: int, counters: EpochCounters) -> Iterator[StreamRow]:
        """Iterate over the examples of an epoch in order, starting at number `skip`."""
        # Only decoding finds bad records. If none are allowed, skipped rows need not be decoded.
        undecoded = 0 if self._settings.max_bad_records else skip
        rows = self._ordered(epoch, undecoded, counters)
        pieces = _with_error_last(_in_pieces(rows, _DECODED_AT_ONCE))
        good = 0
        key = None if self._geometry.seed is None else (self._geometry.seed, epoch)
        for piece in in_order(partial(self._decoded, key), pieces, self._settings.threads):
            if isinstance(piece, Exception):
                raise self._explained(piece, epoch, counters) from piece.__cause__
            for outcome in piece:
                if isinstance(outcome, BadRow):
                    self._count_bad(outcome, counters)
                    continue
                good += 1
                if good > skip - undecoded:
                    yield outcome
        there = good if self._settings.max_bad_records else counters.rows
        if there <= skip - (self._high - self._low):  # the last of the skipped batches can be a partial batch
            raise DataError(
                f"Epoch {epoch} resumes after {skip} examples, but the {self._name} has only {there}. Expected the "
                "data of the saved run."
            )

    def _decoded(self, key: tuple[int, int] | None, piece: list[StreamRow] | Exception) -> list[Any] | Exception:
        if isinstance(piece, Exception):
            return piece
        outcomes: list[Any] = []
        for shard, row, record in piece:
            try:
                outcomes.append(StreamRow(shard, row, self._shards.decode(record, key, (shard, row))))
            except BadRecordError as error:
                outcomes.append(BadRow(shard, row, error))
            except ReadingFailed as failed:  # for a file that the record refers to
                return failed
        return outcomes

    def _count_bad(self, bad: BadRow, counters: EpochCounters) -> None:
        counters.bad += 1
        most = self._settings.max_bad_records
        story = f"Row {bad.row} of {self._shards.name(bad.shard)} cannot be used: {bad.error}"
        if counters.bad > most:
            raise DataError(
                f"{story} That is bad record {counters.bad} of this epoch, but max_bad_records={most}. Repair the "
                "data, or raise max_bad_records: bad records are skipped and counted as bad_records in the logs."
            ) from bad.error
        _log.warning("%s It is skipped: bad record %d of at most %d per epoch.", story, counters.bad, most)

    def _explained(self, error: Exception, epoch: int, counters: EpochCounters) -> Exception:
        if not isinstance(error, ReadingFailed):
            return error
        return DataError(
            f"{error.story} Before that, {counters.rows} rows of epoch {epoch} were read, and the model keeps their "
            "updates. Check the file or the network, then resume."
        )

    # --- reading ------------------------------------------------------------------------------------------------------

    def _ordered(self, epoch: int, skip: int, counters: EpochCounters) -> Iterator[StreamRow]:
        """Iterate over the rows of an epoch in order, starting at number `skip`."""
        seed = self._geometry.seed
        segments = self._segments(epoch)
        if seed is None:
            return self._rows(segments, 1, skip, counters)
        window = self._settings.window
        number, rest = divmod(skip, window)
        rows = self._rows(segments, self._settings.interleave, number * window, counters)
        return itertools.islice(_shuffled(rows, window, (seed, epoch), number), rest, None)

    def _segments(self, epoch: int) -> Sequence[Segment]:
        """Return the segments that this process reads in an epoch."""
        shards: Sequence[int] = range(len(self._shards))
        if self._geometry.seed is not None:
            shards = np.random.default_rng((self._geometry.seed, epoch)).permutation(len(shards)).tolist()
        if self._lengths is None:
            return [Segment(shard) for shard in shards]
        if self._geometry.shard[1] == 1:
            return [Segment(shard, 0, self._lengths[shard]) for shard in shards]
        segments = stretch(shards, self._lengths, *share(self.examples or 0, self._geometry))
        if not segments:
            raise DataError(
                f"The {self._name} has {self.examples} examples, too few for {self._geometry.shard[1]} processes and "
                f"batch_size={self._geometry.batch_size}. Expected a batch_size of at most {self.examples}."
            )
        return segments

    def _rows(self, segments: Sequence[Segment], width: int, skip: int, counters: EpochCounters) -> Iterator[StreamRow]:
        """Iterate over the rows of all segments, `width` of them in turn, starting at number `skip`."""
        place = beginning(len(segments), width)
        if self._lengths is not None:
            place = advance(place, [(segment.stop or 0) - segment.start for segment in segments], skip)
            counters.rows = skip = min(skip, sum((segment.stop or 0) - segment.start for segment in segments))
        rows = interleave(place, len(segments), lambda i, row: self._read(segments[i], segments[i].start + row))
        for row in rows:
            counters.rows += 1
            if counters.rows > skip:
                yield row
        if self._lengths is None and self._promised is not None and counters.rows != self._promised:
            raise DataError(
                f"The {self._name} promised {self._promised} rows and yielded {counters.rows}. Expected all rows. "
                "Correct its metadata, or check why rows are missing."
            )

    def _read(self, segment: Segment, start: int) -> Iterator[StreamRow]:
        """Iterate over the rows of a segment, starting at row `start` of its shard, with read-ahead in a thread."""
        pieces = _in_pieces(self._records(segment, start), _READ_AT_ONCE)
        row = start
        for piece in prefetch(pieces, 1) if self._settings.threads else pieces:
            for record in piece:
                yield StreamRow(segment.shard, row, record)
                row += 1

    def _records(self, segment: Segment, start: int) -> Iterator[Any]:
        name = self._shards.name(segment.shard)
        read = read_on(name, partial(self._shards.read, segment.shard), start, self._settings.retries)
        row = start
        for record in read:
            if row == segment.stop:
                if self._lengths is not None and segment.stop < self._lengths[segment.shard]:
                    return  # another process reads the rest
                raise DataError(
                    f"{name} promised {segment.stop} rows and yields more. Expected no more rows. Correct its metadata."
                )
            yield record
            row += 1
        if segment.stop is not None and row < segment.stop:
            raise DataError(
                f"{name} promised {segment.stop} rows and ended after {row}. Expected all rows. Replace the file if it "
                "is truncated, or correct its metadata."
            )


def _shuffled(rows: Iterator[StreamRow], window: int, seed: tuple[int, int], number: int) -> Iterator[StreamRow]:
    """Iterate over the rows in windows that are permuted independently; `number` is the first window."""
    while held := list(itertools.islice(rows, window)):
        number += 1  # starts at 1, because NumPy treats the seeds (a, b) and (a, b, 0) alike
        for i in np.random.default_rng((*seed, number)).permutation(len(held)):
            yield held[i]


def _in_pieces(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Group items into lists of `size`; before an error, yield the items that precede it."""
    piece: list[T] = []
    try:
        for item in items:
            piece.append(item)
            if len(piece) == size:
                yield piece
                piece = []
    except Exception:
        if piece:
            yield piece
        raise
    if piece:
        yield piece


def _with_error_last(pieces: Iterator[T]) -> Iterator[T | Exception]:
    """Yield an error as the last item, so that it keeps its position in the order of the pieces."""
    try:
        yield from pieces
    except Exception as error:  # noqa: BLE001  (`_good` raises it at its position in the order)
        yield error
