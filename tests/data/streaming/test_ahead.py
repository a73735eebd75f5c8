"""Reading ahead in threads keeps the order, the bounds and the errors."""

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
def test_results_come_in_the_order_of_the_items_whatever_the_number_of_threads(n: int, threads: int) -> None:
    assert list(in_order(lambda i: i * i, range(n), threads)) == [i * i for i in range(n)]


def test_threads_work_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=30)
    assert list(in_order(lambda i: barrier.wait() >= 0, range(6), threads=3)) == [True] * 6


def test_no_more_is_read_than_two_results_a_thread() -> None:
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
def test_an_error_comes_where_its_result_would_have_come(threads: int) -> None:
    def fail(i: int) -> int:
        if i == 3:
            raise DataError("the fourth")
        return i

    results = in_order(fail, range(10), threads)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="the fourth"):
        next(results)


@given(n=st.integers(0, 30), size=st.integers(1, 5))
def test_prefetch_changes_nothing_but_the_time(n: int, size: int) -> None:
    assert list(prefetch(range(n), size)) == list(range(n))


def test_prefetch_works_while_its_user_does() -> None:
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
    assert len(made) == 5  # one used, three ready, and one for which there is no room
    items.close()
    assert not any(thread.name == "resfit-prefetch" for thread in threading.enumerate())


def test_an_error_of_the_source_comes_after_what_it_gave() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    items = prefetch(source())
    assert next(items) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)


def test_prefetching_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="size=0"):
        prefetch([1], 0)
