"""Bounded, ordered read-ahead in threads."""

import collections
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from resfit._utils.keywords import checked
from resfit.errors import DataError

T = TypeVar("T")
S = TypeVar("S")


def in_order(function: Callable[[T], S], items: Iterable[T], threads: int) -> Iterator[S]:
    """Call a function on every item in threads ahead of the consumer, and yield the results in order.

    At most two results per thread are pending. An error in the function is raised at the position of its result.

    Args:
      function: the function; several threads call it at once.
      items: the arguments of the calls.
      threads: the number of threads; 0 computes each result on demand.

    Example:
      >>> list(in_order(lambda n: n * n, range(5), threads=2))
      [0, 1, 4, 9, 16]
    """
    if not threads:
        yield from map(function, items)
        return
    flying: collections.deque[Future[S]] = collections.deque()
    here = threading.local()
    pool = ThreadPoolExecutor(threads, "resfit-data", initializer=setattr, initargs=(here, "in_pool", True))
    try:
        for item in items:
            flying.append(pool.submit(function, item))
            if len(flying) >= 2 * threads:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()
    finally:  # also if the consumer stops early
        # A thread of the pool can collect an abandoned generator as garbage, and cannot wait for itself.
        pool.shutdown(wait=not hasattr(here, "in_pool"), cancel_futures=True)


@checked("function arguments")
def prefetch(source: Iterable[T], size: int = 2) -> Iterator[T]:
    """Iterate over a source in a background thread, up to `size` items ahead.

    `prefetch` helps loaders that work on the host between batches and have no workers. Items that were read ahead are
    lost if the consumer stops early, so pass a re-iterable source.

    Args:
      source: any iterable.
      size: the maximum number of items that are ready.

    Raises:
      DataError: if `size` is not positive. An error of the source is raised at the position of its item.

    Example:
      >>> list(prefetch(range(3)))
      [0, 1, 2]
    """
    if size < 1:
        raise DataError(f"Expected prefetch to keep a positive number of items ready, got size={size}.")
    return _prefetch(source, size)


def close(iterator: Iterator[Any]) -> None:
    """End the threads that read ahead for a generator; other iterators stay as they are.

    The traceback of an exception keeps the frame of the consumer, and so a generator that was not closed, alive.
    """
    if isinstance(iterator, Generator):
        iterator.close()


def _prefetch(source: Iterable[T], size: int) -> Iterator[T]:
    # The thread can be one item further: it holds an item while the queue is full.
    ready: _Queue = queue.Queue(size)
    stop = threading.Event()
    thread = threading.Thread(target=_fill, args=(source, ready, stop), name="resfit-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stop.set()
        if thread is not threading.current_thread():  # which can collect an abandoned generator as garbage
            thread.join()


_END = object()
_Queue = queue.Queue[tuple[Any, BaseException | None]]


def _fill(source: Iterable[Any], ready: _Queue, stop: threading.Event) -> None:
    """Put the items of the source into the queue, then `_END` or an error, until `stop` is set."""
    try:
        for item in source:
            _put(ready, (item, None), stop)
            if stop.is_set():
                return
    except BaseException as error:  # noqa: BLE001  (the consuming thread raises it)
        _put(ready, (_END, error), stop)
    else:
        _put(ready, (_END, None), stop)


def _put(ready: _Queue, entry: tuple[Any, BaseException | None], stop: threading.Event) -> None:
    """Put an entry into the queue as soon as there is room, unless `stop` is set first."""
    while not stop.is_set():
        try:
            ready.put(entry, timeout=0.1)
        except queue.Full:
            continue
        return
