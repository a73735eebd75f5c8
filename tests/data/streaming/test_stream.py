"""Streams: order of rows, resuming, several processes, retries, row counts, and bad records."""

import itertools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from resfit.data import Batches, Geometry, ShardStream, Stream
from resfit.data.streaming import retry
from resfit.data.streaming.interleave import advance, beginning, interleave
from resfit.data.streaming.retry import is_transient
from resfit.data.streaming.shares import share, stretch
from resfit.errors import BadRecordError, DataError
from tests.helpers import BATCH, compiled, fit, labels, values


class Numbered:
    """Shards whose records are (shard, row); a record becomes the number 100 * shard + row."""

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        promised: Sequence[int] | None = None,
        examples: int | None = None,
        bad: Sequence[int] = (),
        fail: Callable[[int, int], Exception | None] = lambda shard, row: None,
    ) -> None:
        self._lengths, self._promised, self._bad, self._fail = lengths, promised, set(bad), fail
        self.examples = examples
        self.opened: list[tuple[int, int]] = []
        self.decoded = 0
        self.decoding_threads: set[str] = set()
        self.drawn: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self._lengths)

    def lengths(self, needed: bool) -> Sequence[int] | None:
        return self._promised

    def name(self, shard: int) -> str:
        return f"shard {shard}"

    def read(self, shard: int, start: int) -> Iterator[Any]:
        self.opened.append((shard, start))
        for row in range(start, self._lengths[shard]):
            error = self._fail(shard, row)
            if error is not None:
                raise error
            yield (shard, row)

    def decode(self, record: Any, key: Any, place: Any) -> Any:
        self.decoded += 1
        self.drawn[record] = (key, place)
        self.decoding_threads.add(threading.current_thread().name)
        number = 100 * record[0] + record[1]
        if number in self._bad:
            raise BadRecordError(f"its number is {number}.")
        return np.full(1, number, np.float32)

    def stack(self, examples: list[Any]) -> Any:
        x = np.stack(examples)
        return x, x[:, 0].astype(np.int32), None


class Endless(Numbered):
    def __init__(self) -> None:
        super().__init__([0, 0])

    def read(self, shard: int, start: int) -> Iterator[Any]:
        return ((shard, row % 100) for row in itertools.count(start))


def numbers(lengths: Sequence[int], bad: Sequence[int] = ()) -> list[int]:
    return [100 * s + r for s, n in enumerate(lengths) for r in range(n) if 100 * s + r not in bad]


def made(shards: Numbered, batch_size: int = 4, *, options: dict[str, Any] | None = None, **geometry: Any) -> Batches:
    stream = ShardStream(shards, **{"window": 5, "threads": 0, **(options or {})})
    return stream.batches(Geometry(**{"batch_size": batch_size, "seed": 0, **geometry}))


def rows(batches: Any, epoch: int = 0, start: int = 0) -> list[list[int]]:
    """Return the real rows of each batch."""
    taken = []
    for batch in batches.epoch(epoch, start):
        x = batch.x[:, 0] if batch.mask is None else batch.x[batch.mask, 0]
        taken.append(x.astype(int).tolist())
    return taken


def flat(lists: list[list[int]]) -> list[int]:
    return list(itertools.chain(*lists))


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE", 1e-4)


# --- order ------------------------------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any),
    window=st.integers(1, 20),
    width=st.integers(1, 6),
    batch_size=st.integers(1, 9),
    known=st.booleans(),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_every_row_comes_once_and_any_batch_can_be_the_first(
    lengths: list[int], window: int, width: int, batch_size: int, known: bool, epoch: int, data: st.DataObject
) -> None:
    bad = data.draw(st.lists(st.sampled_from(numbers(lengths)), max_size=2, unique=True))
    if len(bad) == sum(lengths):
        bad = []

    def stream(threads: int) -> Batches:
        return made(
            Numbered(lengths, promised=lengths if known else None, bad=bad),
            batch_size,
            options={"window": window, "interleave": width, "threads": threads, "max_bad_records": len(bad)},
        )

    whole = rows(stream(0), epoch)
    assert Counter(flat(whole)) == Counter(numbers(lengths, bad))
    assert [len(batch) for batch in whole[:-1]] == [batch_size] * (len(whole) - 1)
    cut = data.draw(st.integers(0, len(whole)))
    batches = stream(0)
    assert rows(batches, epoch, cut) == whole[cut:]
    assert batches.report == ({"bad_records": len(bad)} if bad else {})
    assert batches.steps == (len(whole) if known and not bad else None)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("bad", [(), (3, 107)])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_batches_from_any_start(known: bool, bad: tuple[int, ...], threads: int) -> None:
    lengths = [50, 7, 0, 31, 12]

    def stream(threads: int) -> Any:
        shards = Numbered(lengths, promised=lengths if known else None, bad=bad)
        return made(shards, 9, options={"window": 23, "threads": threads, "max_bad_records": len(bad)})

    whole = rows(stream(0), 1)
    for start in range(len(whole) + 1):
        assert rows(stream(threads), 1, start) == whole[start:]


def test_decoding_really_happens_in_threads() -> None:
    shards = Numbered([200])
    rows(made(shards, options={"threads": 2}))
    assert shards.decoding_threads
    assert all(name.startswith("resfit-data") for name in shards.decoding_threads)


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    lengths = [20, 20, 20]
    first = [rows(made(Numbered(lengths)), epoch) for epoch in range(3)]
    again = [rows(made(Numbered(lengths)), epoch) for epoch in range(3)]
    assert first == again
    assert first[0] != first[1] != first[2] != first[0]
    assert rows(made(Numbered(lengths), seed=1)) != first[0]


def test_without_a_seed_the_rows_keep_their_order() -> None:
    lengths = [3, 0, 7]
    assert flat(rows(made(Numbered(lengths), seed=None), 5)) == numbers(lengths)


def test_every_epoch_permutes_the_shards() -> None:
    batches = made(Numbered([2] * 6), options={"window": 1, "interleave": 1})
    orders = {tuple(number // 100 for number in flat(rows(batches, epoch))) for epoch in range(4)}
    assert len(orders) == 4


def test_a_batch_mixes_shards_and_a_window_mixes_rows() -> None:
    (first, *_) = rows(made(Numbered([50, 50, 50, 50]), 16, options={"window": 100}))
    assert len({number // 100 for number in first}) == 4
    assert sorted(first) != first


def test_every_window_of_an_epoch_has_its_own_permutation() -> None:
    order = np.array(flat(rows(made(Numbered([40]), options={"window": 10})))).reshape(4, 10) % 10
    assert len({tuple(window) for window in order.tolist()}) == 4


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(1, 5), st.data())
def test_advance_agrees_with_reading(lengths: list[int], width: int, data: st.DataObject) -> None:
    def read(shard: int, row: int) -> Iterator[tuple[int, int]]:
        return iter([(shard, i) for i in range(row, lengths[shard])])

    n = len(lengths)
    whole = list(interleave(beginning(n, width), n, read))
    skip = data.draw(st.integers(0, len(whole)))
    assert list(interleave(advance(beginning(n, width), lengths, skip), n, read)) == whole[skip:]


def test_a_resumed_epoch_reads_and_decodes_only_the_needed_rows() -> None:
    shards = Numbered([1000, 1000], promised=[1000, 1000])
    batches = made(shards, 10, options={"window": 50})
    next(iter(batches.epoch(0, start=150)))
    assert {start for _, start in shards.opened} == {750}
    assert shards.decoded <= 32 + 10  # one piece of rows, and no row before the batch


@pytest.mark.parametrize("seed", [0, None])
def test_random_values_of_a_record_depend_on_seed_epoch_and_place_only(seed: int | None) -> None:
    shards = Numbered([5, 4])
    rows(made(shards, seed=seed), 3)
    key = None if seed is None else (seed, 3)
    assert shards.drawn == {(s, r): (key, (s, r)) for s, n in enumerate([5, 4]) for r in range(n)}


def test_an_unfinished_epoch_leaves_no_thread() -> None:
    epoch = made(Numbered([500, 500]), options={"threads": 3}).epoch(0)
    next(iter(epoch))
    epoch.close()  # type: ignore[attr-defined]
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("resfit")] == []


# --- the last batch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [False, True])
def test_the_last_batch_is_kept_padded_or_dropped_as_configured(known: bool, caplog: pytest.LogCaptureFixture) -> None:
    def batches(**geometry: Any) -> Any:
        return made(Numbered([6, 3], promised=[6, 3] if known else None), **geometry)

    assert [batch.size for batch in batches().epoch(0)] == [4, 4, 1]
    assert [batch.x.shape for batch in batches().epoch(0)] == [(4, 1), (4, 1), (1, 1)]
    padded = list(batches(pad=True, seed=None).epoch(0))
    assert [batch.size for batch in padded] == [4, 4, 1]
    assert [batch.mask.tolist() for batch in padded] == [[True] * 4, [True] * 4, [True, False, False, False]]
    assert padded[-1].x[:, 0].tolist() == [102] * 4
    assert [batch.size for batch in batches(drop_remainder=True).epoch(0)] == [4, 4]
    assert caplog.text == ""
    assert [batch.size for batch in batches(min_batch=2).epoch(0)] == [4, 4]
    assert "The last batch of an epoch has 1 example(s), too few for BatchNorm" in caplog.text
    with pytest.raises(DataError, match="leaves no batch"):
        list(batches(batch_size=16, drop_remainder=True).epoch(0))
    if known:
        assert [batches(**g).steps for g in ({}, {"min_batch": 2}, {"drop_remainder": True})] == [3, 2, 2]


def test_a_shard_stream_satisfies_the_protocols() -> None:
    assert isinstance(ShardStream(Numbered([1])), Stream)
    assert isinstance(made(Numbered([1])), Batches)


# --- several processes ------------------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(0, 15), min_size=1, max_size=5),
    processes=st.integers(1, 4),
    per_process=st.integers(1, 3),
    pad=st.booleans(),
    drop=st.booleans(),
)
def test_processes_read_every_row_once_in_the_same_number_of_steps(
    lengths: list[int], processes: int, per_process: int, pad: bool, drop: bool
) -> None:
    size = processes * per_process
    assume(sum(lengths) >= size)
    every = [
        made(
            Numbered(lengths, promised=lengths), size,
            pad=pad, drop_remainder=drop or not pad, shard=(index, processes),
        )
        for index in range(processes)
    ]  # fmt: skip
    read = [list(batches.epoch(2)) for batches in every]
    assert len({len(batches) for batches in read}) <= 1
    for together in zip(*read, strict=True):
        assert len({batch.size for batch in together}) == 1
        if pad:
            assert sum(int(batch.mask.sum()) for batch in together) == together[0].size
            assert {len(batch.x) for batch in together} == {per_process}
    taken = Counter(flat([flat(rows(batches, 2)) for batches in every]))
    assert max(taken.values(), default=1) == 1
    if pad and not drop:
        assert taken == Counter(numbers(lengths))


def test_a_process_opens_only_its_own_shards() -> None:
    every = [Numbered([10] * 8, promised=[10] * 8) for _ in range(4)]
    for index, shards in enumerate(every):
        rows(made(shards, 8, shard=(index, 4)))
    opened = [shard for shards in every for shard, _ in shards.opened]
    assert sorted(opened) == list(range(8))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(0, 45), st.integers(0, 45))
def test_a_stretch_is_a_slice_of_the_concatenated_shards(lengths: list[int], first: int, length: int) -> None:
    order = list(reversed(range(len(lengths))))
    line = [(shard, row) for shard in order for row in range(lengths[shard])]
    segments = stretch(order, lengths, first, first + length)
    cut = [(s.shard, row) for s in segments for row in range(s.start, s.stop or 0)]
    assert cut == line[first : first + length]


@given(st.integers(1, 100), st.integers(1, 5), st.integers(1, 7), st.booleans())
def test_shares_of_processes_are_contiguous(examples: int, processes: int, per_process: int, pad: bool) -> None:
    shares = [
        share(examples, Geometry(processes * per_process, pad=pad, shard=(index, processes)))
        for index in range(processes)
    ]
    assert [low for low, _ in shares] == [0, *(high for _, high in shares[:-1])]
    assert shares[-1][1] == examples


def test_too_few_rows_for_a_process_raise() -> None:
    with pytest.raises(DataError, match="Expected a batch_size of at most 4"):
        rows(made(Numbered([4], promised=[4]), 6, pad=True, shard=(2, 3)))


def test_streams_that_processes_cannot_share_raise() -> None:
    with pytest.raises(DataError, match="does not know the number of rows"):
        made(Numbered([9]), shard=(0, 2))
    with pytest.raises(DataError, match="max_bad_records=1 with 2 processes"):
        made(Numbered([9], promised=[9]), shard=(0, 2), options={"max_bad_records": 1})
    with pytest.raises(DataError, match="an integer of 4 or more, got 3"):
        made(Numbered([9], promised=[9]), 3, shard=(0, 4))


# --- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize(
    ("shards", "message"),
    [
        (Numbered([5, 4], promised=[5, 6]), "shard 1 promised 6 rows and ended after 4"),
        (Numbered([5, 7], promised=[5, 6]), "shard 1 promised 6 rows and yields more"),
        (Numbered([5, 4], examples=10), "Numbered promised 10 rows and yielded 9"),
        (Numbered([5, 6], examples=10), "Numbered promised 10 rows and yielded 11"),
        (Numbered([0, 0]), "yielded no usable example in epoch 0: 0 rows were read, 0 of them bad"),
    ],
)
def test_a_number_of_rows_other_than_the_promised_one_raises(shards: Numbered, message: str, threads: int) -> None:
    with pytest.raises(DataError, match=message):
        rows(made(shards, options={"threads": threads}))


def test_the_promised_number_of_rows_gives_the_steps() -> None:
    batches = made(Numbered([5, 4], examples=9))
    assert (batches.steps, batches.examples) == (3, 9)
    assert len(rows(batches)) == 3


def test_resuming_with_another_dataset_raises() -> None:
    with pytest.raises(DataError, match="resumes after 40 examples, but the Numbered has only 9"):
        rows(made(Numbered([5, 4])), start=10)


def test_an_endless_stream_has_no_steps_and_ends_with_the_steps_per_epoch() -> None:
    batches = made(Endless(), options={"threads": 2, "window": 16})
    assert batches.steps is None
    taken = [batch.size for batch in itertools.islice(batches.epoch(0), 30)]
    assert taken == [4] * 30


# --- bad records ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 3])
def test_the_first_bad_record_raises_and_is_named(threads: int) -> None:
    with pytest.raises(DataError, match=r"Row 4 of shard 1 cannot be used: its number is 104\. .*max_bad_records=0"):
        rows(made(Numbered([30, 9], bad=[104]), options={"threads": threads}))


@pytest.mark.parametrize("threads", [0, 3])
def test_allowed_bad_records_are_skipped_logged_and_reported(threads: int, caplog: pytest.LogCaptureFixture) -> None:
    lengths, bad = [30, 9, 14], [104, 0, 29]
    batches = made(Numbered(lengths, bad=bad), options={"threads": threads, "max_bad_records": 3})
    whole = rows(batches)
    assert Counter(flat(whole)) == Counter(numbers(lengths, bad))
    assert {len(batch) for batch in whole[:-1]} == {4}  # filled with the next rows
    assert batches.report == {"bad_records": 3}
    assert caplog.text.count("It is skipped") == 3
    rows(batches, 1)
    assert batches.report == {"bad_records": 3}  # of this epoch only


def test_the_report_includes_bad_records_before_a_resumed_batch() -> None:
    lengths, bad = [30, 9, 14], [104, 0, 29]
    batches = made(Numbered(lengths, bad=bad), options={"max_bad_records": 3})
    counts = []
    for _ in batches.epoch(0):
        counts.append(batches.report["bad_records"])
    for start in range(len(counts)):
        epoch = batches.epoch(0, start)
        next(iter(epoch))
        assert batches.report["bad_records"] == counts[start]


def test_one_bad_record_more_than_allowed_raises() -> None:
    with pytest.raises(DataError, match="That is bad record 3 of this epoch, but max_bad_records=2"):
        rows(made(Numbered([30], bad=[1, 2, 3]), options={"max_bad_records": 2}))


def test_only_bad_records_raise() -> None:
    with pytest.raises(DataError, match="no usable example in epoch 0: 3 rows were read, 3 of them bad"):
        rows(made(Numbered([3], bad=[0, 1, 2]), options={"max_bad_records": 5}))


def test_a_bug_in_decode_is_not_a_bad_record() -> None:
    class Wrong(Numbered):
        def decode(self, record: Any, key: Any, place: Any) -> Any:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rows(made(Wrong([3]), options={"max_bad_records": 5}))


# --- interruptions ----------------------------------------------------------------------------------------------------


def flaky(times: int, error: Exception) -> Callable[[int, int], Exception | None]:
    """Shards that fail several times in a row at every tenth row."""
    left = Counter[tuple[int, int]]()

    def fail(shard: int, row: int) -> Exception | None:
        if row % 10 or left[shard, row] >= times:
            return None
        left[shard, row] += 1
        return error

    return fail


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("threads", [0, 2])
def test_retries_do_not_change_the_batches(threads: int, caplog: pytest.LogCaptureFixture) -> None:
    lengths = [35, 12]
    whole = rows(made(Numbered(lengths)))
    shards = Numbered(lengths, fail=flaky(2, ConnectionError("reset by peer")))
    assert rows(made(shards, options={"threads": threads, "retries": 2})) == whole
    assert "shard 0: ConnectionError: reset by peer after row 10. Retry" in caplog.text


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("threads", [0, 2])
def test_a_failed_stream_reports_the_last_row(threads: int) -> None:
    def fail(shard: int, row: int) -> Exception | None:
        return OSError("disk on fire") if (shard, row) == (1, 7) else None

    batches = made(Numbered([10, 10], fail=fail), seed=None, options={"threads": threads, "retries": 3})
    epoch = batches.epoch(0)
    assert [batch.size for batch in itertools.islice(epoch, 4)] == [4] * 4  # all rows that were read, in full batches
    message = "shard 1 could not be read beyond row 7 after 4 tries: OSError: disk on fire.* 17 rows"
    with pytest.raises(DataError, match=message) as caught:
        next(epoch)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), PermissionError("no"), ValueError("corrupt footer")])
def test_permanent_errors_are_not_retried(error: Exception) -> None:
    shards = Numbered([10], fail=lambda shard, row: error)
    with pytest.raises(DataError, match=str(error)):
        rows(made(shards))
    assert len(shards.opened) == 1


def test_errors_of_network_clients_are_transient_by_their_package() -> None:
    kind = type("ReadTimeout", (Exception,), {"__module__": "httpx._exceptions"})
    assert is_transient(kind())
    assert is_transient(TimeoutError())
    assert not is_transient(RuntimeError())


# --- arguments and training -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"window": 0}, {"interleave": 0}, {"max_bad_records": -1}, {"retries": 1.5}, {"threads": -1}, {"window": True}],
)
def test_an_argument_out_of_range_is_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(DataError, match=f"Expected {name} to be an integer of"):
        ShardStream(Numbered([1]), **options)


def test_a_stream_without_shards_raises() -> None:
    with pytest.raises(DataError, match="Numbered has no shards"):
        ShardStream(Numbered([]))


class Pictures(Numbered):
    """Numbered rows as images of 8 x 8 with one of three labels."""

    def decode(self, record: Any, key: Any, place: Any) -> Any:
        number = int(super().decode(record, key, place)[0])
        return np.random.default_rng(number).normal(size=(8, 8, 1)).astype(np.float32), labels(300)[number]

    def stack(self, examples: list[Any]) -> Any:
        return np.stack([x for x, _ in examples]), np.stack([y for _, y in examples]), None


def test_a_model_trains_evaluates_and_predicts_from_a_stream() -> None:
    model = compiled()
    history = fit(model, ShardStream(Pictures([15, 5]), window=8), validation_data=ShardStream(Pictures([9])), epochs=2)
    assert len(history.history["val_loss"]) == 2
    assert model.predict(ShardStream(Pictures([7, 4])), batch_size=BATCH, verbose=0).shape == (11, 3)


@pytest.mark.usefixtures("quick_retries")
def test_a_failed_stream_leaves_the_model_at_its_last_step() -> None:
    def fail(shard: int, row: int) -> Exception | None:
        return ConnectionError("gone") if row == 2 * BATCH else None

    model, reference = compiled(), compiled()
    with pytest.raises(DataError, match="the model keeps their updates"):
        fit(model, ShardStream(Pictures([40], fail=fail), window=1, retries=0))
    fit(reference, ShardStream(Pictures([2 * BATCH]), window=1, retries=0))
    after, expected = values(model.module), values(reference.module)
    assert all(np.array_equal(after[name], expected[name]) for name in expected)


def test_an_endless_stream_trains_with_steps_per_epoch() -> None:
    class EndlessPictures(Endless, Pictures):
        pass

    history = fit(compiled(), ShardStream(EndlessPictures(), window=16), epochs=2, steps_per_epoch=3)
    assert len(history.history["loss"]) == 2


def test_logging_names_the_library(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="resfit"):
        rows(made(Numbered([3], bad=[1]), options={"max_bad_records": 1}))
    assert [record.name for record in caplog.records] == ["resfit"]
