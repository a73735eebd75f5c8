"""An epoch of a stream, from its shards to its batches."""

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

_READ_AT_ONCE = 64  # rows that a reading thread hands over together
_DECODED_AT_ONCE = 32  # rows that a decoding thread takes together


class Shards(Protocol):
    """What a stream reads. Records are what is read; examples are what they are decoded to."""

    def __len__(self) -> int:
        """The number of shards."""

    @property
    def examples(self) -> int | None:
        """The rows of all shards together, where somebody promises them: an epoch that yields others is an error."""

    def lengths(self, needed: bool) -> Sequence[int] | None:
        """The rows of each shard, or None if that is not known; `needed` allows an effort, such as asking each file."""

    def name(self, shard: int) -> str:
        """What to call a shard in a message."""

    def read(self, shard: int, start: int) -> Iterator[Any]:
        """The records of a shard from row `start` on. Several shards are read at once, each in a thread of its own."""

    def decode(self, record: Any, key: tuple[int, int] | None, place: tuple[int, int]) -> Any:
        """The example in a record. Called from several threads.

        Args:
          record: as `read` yielded it.
          key: (seed, epoch), which with the place decide whatever is random; None where nothing is to be.
          place: (shard, row) of the record.

        Raises:
          BadRecordError: if the record cannot be used. Any other error ends the epoch.
        """

    def stack(self, examples: list[Any]) -> tuple[Any, Any, Any]:
        """(x, y, weight) of these examples; y and weight may be None."""


class Settings(NamedTuple):
    """The arguments of `ShardStream`, which says what they mean."""

    window: int
    interleave: int
    max_bad_records: int
    retries: int
    threads: int


class Row(NamedTuple):
    """A record and where it stands."""

    shard: int
    row: int
    record: Any


class Bad(NamedTuple):
    """Where a record stood that cannot be used, and why."""

    shard: int
    row: int
    error: BadRecordError


class Count:
    """How far the reading of an epoch has come: rows read, also those that were skipped, and how many were bad."""

    def __init__(self) -> None:
        self.rows = self.bad = 0


class StreamBatches:
    """The batches of a `ShardStream`.

    Args:
      shards: what to read.
      settings: how to read it.
      geometry: how to cut it.

    Raises:
      DataError: if several processes are to share what cannot be split.
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
        self._told = False
        # Until all were decoded, nobody knows how many of the records are good.
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
                f"max_bad_records={self._settings.max_bad_records} with {processes} processes: each would leave out "
                "other records and come to another number of steps, and they would wait for each other for ever. "
                "Expected 0: write the data anew without the bad ones."
            )
        if self._lengths is None:
            raise DataError(
                f"{processes} processes are to share a stream, and the {self._name} does not know how many rows its "
                "shards have. Expected shards that say so, such as parquet files that are neither filtered nor mapped "
                "in batches."
            )

    @property
    def report(self) -> Mapping[str, float]:
        """How many records of this epoch were left out so far, where that is allowed."""
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
        """Each batch, and how many records were bad until then; at last None and all that were bad."""
        count = Count()
        rows = self._high - self._low
        held: list[Any] = []
        last: Any = None
        number = start
        for example in self._good(epoch, start * rows, count):
            held.append(example)
            last = example
            if len(held) == rows:
                yield self._batch(held, self._size(number)), count.bad
                held = []
                number += 1
        if not number and not held:
            raise DataError(
                f"The {self._name} yielded no usable example in epoch {epoch}: {count.rows} rows were read, "
                f"{count.bad} of them bad. Expected at least one."
            )
        rest = len(held) if self._geometry.shard[1] == 1 else self._size(number)
        if rest and not self._dropped(rest, number):
            if last is None:
                raise DataError(
                    f"The last batch has {rest} example(s), too few for {self._geometry.shard[1]} processes. Another "
                    "batch_size avoids that, as does drop_remainder=True."
                )
            # Padding repeats the last example: whatever the network does to real rows, it survives these.
            filler = [last] * (rows - len(held)) if self._geometry.pad else []
            yield self._batch(held + filler, rest), count.bad
        yield None, count.bad

    def _size(self, number: int) -> int:
        """The examples of a batch that this process could fill, counting those of all processes."""
        size = self._geometry.batch_size
        if self._geometry.shard[1] == 1:
            return size
        return min(size, max(0, (self.examples or 0) - number * size))

    def _dropped(self, rest: int, full: int) -> bool:
        """Whether a last batch of so many is left out, after so many full ones."""
        if self._geometry.drop_remainder:
            if not full:
                raise DataError(
                    f"drop_remainder=True with {rest} examples and batch_size={self._geometry.batch_size} leaves "
                    "nothing to train on."
                )
            return True
        if not full or rest >= self._geometry.min_batch:
            return False
        if not self._told:
            self._told = True
            _log.warning(
                "The last batch of an epoch has %d example(s), too few for BatchNorm, and is left out. Another "
                "batch_size avoids that; this one is %d.", rest, self._geometry.batch_size,
            )  # fmt: skip
        return True

    def _batch(self, examples: list[Any], size: int) -> Batch:
        x, y, weight = self._shards.stack(examples)
        if any(len(leaf) != len(examples) for leaf in jax.tree.leaves((x, y, weight))):
            raise DataError(
                f"{self._name}.stack was given {len(examples)} examples and returned arrays of other lengths."
            )
        check_values(x, y)
        mask = np.arange(self._low, self._high) < size if self._geometry.pad else None
        return Batch(x, y, weight, mask, size)

    # --- decoding -----------------------------------------------------------------------------------------------------

    def _good(self, epoch: int, skip: int, count: Count) -> Iterator[Any]:
        """The examples of an epoch in their order, from number `skip` on."""
        # Which records are bad shows only when they are decoded. Where none may be, skipping costs next to nothing.
        undecoded = 0 if self._settings.max_bad_records else skip
        rows = self._ordered(epoch, undecoded, count)
        pieces = _with_error_last(_in_pieces(rows, _DECODED_AT_ONCE))
        good = 0
        key = None if self._geometry.seed is None else (self._geometry.seed, epoch)
        for piece in in_order(partial(self._decoded, key), pieces, self._settings.threads):
            if isinstance(piece, Exception):
                raise self._explained(piece, epoch, count) from piece.__cause__
            for outcome in piece:
                if isinstance(outcome, Bad):
                    self._count_bad(outcome, count)
                    continue
                good += 1
                if good > skip - undecoded:
                    yield outcome
        there = good if self._settings.max_bad_records else count.rows
        if there <= skip - (self._high - self._low):  # fewer than all batches before, the last of them a short one
            raise DataError(
                f"Epoch {epoch} was to go on after {skip} examples, and the {self._name} holds {there}. Expected the "
                "same data as before."
            )

    def _decoded(self, key: tuple[int, int] | None, piece: list[Row] | Exception) -> list[Any] | Exception:
        if isinstance(piece, Exception):
            return piece
        outcomes: list[Any] = []
        for shard, row, record in piece:
            try:
                outcomes.append(self._shards.decode(record, key, (shard, row)))
            except BadRecordError as error:
                outcomes.append(Bad(shard, row, error))
            except ReadingFailed as failed:  # of a file that the record only names
                return failed
        return outcomes

    def _count_bad(self, bad: Bad, count: Count) -> None:
        count.bad += 1
        most = self._settings.max_bad_records
        told = f"Row {bad.row} of {self._shards.name(bad.shard)} cannot be used: {bad.error}"
        if count.bad > most:
            raise DataError(
                f"{told} That is bad record {count.bad} of this epoch, and max_bad_records={most}. Mend the data, or "
                "allow more of them: they are left out and counted as bad_records in the logs."
            ) from bad.error
        _log.warning("%s It is left out: bad record %d of at most %d in an epoch.", told, count.bad, most)

    def _explained(self, error: Exception, epoch: int, count: Count) -> Exception:
        if not isinstance(error, ReadingFailed):
            return error
        return DataError(
            f"{error.story} Before that, {count.rows} rows of epoch {epoch} had been read. The model keeps what it has "
            "learned from them."
        )

    # --- reading ------------------------------------------------------------------------------------------------------

    def _ordered(self, epoch: int, skip: int, count: Count) -> Iterator[Row]:
        """The rows of an epoch in their order, from number `skip` on."""
        seed = self._geometry.seed
        segments = self._segments(epoch)
        if seed is None:
            return self._rows(segments, 1, skip, count)
        window = self._settings.window
        number, rest = divmod(skip, window)
        rows = self._rows(segments, self._settings.interleave, number * window, count)
        return itertools.islice(_shuffled(rows, window, (seed, epoch), number), rest, None)

    def _segments(self, epoch: int) -> Sequence[Segment]:
        """What this process reads in an epoch, shard by shard."""
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
                f"The {self._name} holds {self.examples} examples, too few for {self._geometry.shard[1]} processes and "
                f"batch_size={self._geometry.batch_size}. Expected a batch_size of at most {self.examples}."
            )
        return segments

    def _rows(self, segments: Sequence[Segment], width: int, skip: int, count: Count) -> Iterator[Row]:
        """The rows of all segments, `width` of them read in turns, from number `skip` on."""
        place = beginning(len(segments), width)
        if self._lengths is not None:
            place = advance(place, [(segment.stop or 0) - segment.start for segment in segments], skip)
            count.rows = skip = min(skip, sum((segment.stop or 0) - segment.start for segment in segments))
        rows = interleave(place, len(segments), lambda i, row: self._read(segments[i], segments[i].start + row))
        for row in rows:
            count.rows += 1
            if count.rows > skip:
                yield row
        if self._lengths is None and self._promised is not None and count.rows != self._promised:
            raise DataError(
                f"The {self._name} promised {self._promised} rows and yielded {count.rows}. Expected all of them: it "
                "loses data, or its metadata are wrong."
            )

    def _read(self, segment: Segment, start: int) -> Iterator[Row]:
        """The rows of a segment from row `start` of its shard on, read ahead in a thread of their own."""
        pieces = _in_pieces(self._records(segment, start), _READ_AT_ONCE)
        row = start
        for piece in prefetch(pieces, 1) if self._settings.threads else pieces:
            for record in piece:
                yield Row(segment.shard, row, record)
                row += 1

    def _records(self, segment: Segment, start: int) -> Iterator[Any]:
        name = self._shards.name(segment.shard)
        read = read_on(name, partial(self._shards.read, segment.shard), start, self._settings.retries)
        row = start
        for record in read:
            if row == segment.stop:
                if self._lengths is not None and segment.stop < self._lengths[segment.shard]:
                    return  # the rest is another process's
                raise DataError(
                    f"{name} promised {segment.stop} rows and goes on after them. Expected no more: its metadata are "
                    "wrong."
                )
            yield record
            row += 1
        if segment.stop is not None and row < segment.stop:
            raise DataError(
                f"{name} promised {segment.stop} rows and ended after {row}. Expected all of them: it was cut short, "
                "or its metadata are wrong."
            )


def _shuffled(rows: Iterator[Row], window: int, seed: tuple[int, int], number: int) -> Iterator[Row]:
    """The rows in windows, each permuted by itself; `number` is that of the first."""
    while held := list(itertools.islice(rows, window)):
        number += 1  # from 1: NumPy seeds (a, b) and (a, b, 0) alike
        for i in np.random.default_rng((*seed, number)).permutation(len(held)):
            yield held[i]


def _in_pieces(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of so many items; when an error comes, what came before it is handed over first."""
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
    """An error as the last item, so that it overtakes nothing on its way through the threads."""
    try:
        yield from pieces
    except Exception as error:  # noqa: BLE001  (it is raised where its place in the order has come)
        yield error
