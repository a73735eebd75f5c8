"""Read-ahead in threads keeps the order of results, the limit of pending items, and the errors."""

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resfit.data import prefetch
from resfit.data.streaming.ahead import in_order
from resfit.errors import DataError


@given(n=st.integers(0, 30), threads=st.integers(0, 4))
def test_results_have_the_order_of_the_items_for_any_number_of_threads(n: int, threads: int) -> None:
    assert list(in_order(lambda i: i * i, range(n), threads)) == [i * i for i in range(n)]


def test_threads_work_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=30)
    assert list(in_order(lambda i: barrier.wait() >= 0, range(6), threads=3)) == [True] * 6


def test_at_most_two_results_per_thread_are_pending() -> None:
    begun: list[int] = []
    results = in_order(lambda i: begun.append(i), range(100), threads=2)
    for _ in range(3):
        next(results)
    time.sleep(0.05)
    assert len(begun) <= 3 + 4
    results.close()
    time.sleep(0.05)
    assert len(begun) <= 3 + 4


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_error_is_raised_at_the_position_of_its_result(threads: int) -> None:
    def fail(i: int) -> int:
        if i == 3:
            raise DataError("the fourth")
        return i

    results = in_order(fail, range(10), threads)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="the fourth"):
        next(results)


@given(n=st.integers(0, 30), size=st.integers(1, 5))
def test_prefetch_yields_the_same_items(n: int, size: int) -> None:
    assert list(prefetch(range(n), size)) == list(range(n))


def test_prefetch_overlaps_with_its_consumer() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    items = prefetch(source(), 3)
    next(items)
    deadline = time.monotonic() + 30
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 5  # one used, three ready, and one that waits for room
    items.close()
    assert not any(thread.name == "resfit-prefetch" for thread in threading.enumerate())


def test_an_error_of_the_source_follows_the_items_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    items = prefetch(source())
    assert next(items) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)


@pytest.mark.filterwarnings("error")
def test_a_generator_that_its_own_thread_collects_ends_without_an_error() -> None:
    held: list[Iterator[int]] = []
    taken, threads = threading.Event(), []

    def source() -> Iterator[int]:
        threads.append(threading.current_thread())
        yield 0
        taken.wait(30)
        held.clear()  # the last reference, as a garbage collection in this thread removes it
        yield 1

    held.append(prefetch(source(), 2))
    assert next(held[0]) == 0
    taken.set()
    threads[0].join(30)
    assert not threads[0].is_alive()


@pytest.mark.filterwarnings("error")
def test_results_that_a_thread_of_the_pool_collects_end_without_an_error() -> None:
    held: list[Iterator[int]] = []
    taken, threads = threading.Event(), []

    def function(item: int) -> int:
        if item == 0:
            threads.append(threading.current_thread())
        if item == 2:
            taken.wait(30)
            held.clear()
        return item

    held.append(in_order(function, range(9), threads=1))
    assert next(held[0]) == 0
    assert next(held[0]) == 1
    taken.set()
    threads[0].join(30)
    assert not threads[0].is_alive()


def test_a_prefetch_size_of_zero_raises() -> None:
    with pytest.raises(DataError, match="size=0"):
        prefetch([1], 0)
