"""Reading ahead in threads, in order and within bounds."""

import collections
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from resfit.errors import DataError

T = TypeVar("T")
S = TypeVar("S")


def in_order(function: Callable[[T], S], items: Iterable[T], threads: int) -> Iterator[S]:
    """The function of every item, in the items' order, computed in threads ahead of whoever iterates.

    At most two results for each thread are waiting or being made. An error in the function is raised where its result
    would have come.

    Args:
      function: called from several threads at once.
      items: what to call it on.
      threads: how many; 0 computes each result when it is asked for.

    Example:
      >>> list(in_order(lambda n: n * n, range(5), threads=2))
      [0, 1, 4, 9, 16]
    """
    if not threads:
        yield from map(function, items)
        return
    flying: collections.deque[Future[S]] = collections.deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="resfit-data") as pool:
        try:
            for item in items:
                flying.append(pool.submit(function, item))
                if len(flying) >= 2 * threads:
                    yield flying.popleft().result()
            while flying:
                yield flying.popleft().result()
        finally:  # also when nobody wants the rest
            for future in flying:
                future.cancel()


def prefetch(source: Iterable[T], size: int = 2) -> Iterator[T]:
    """Iterates in a thread of its own, up to `size` items ahead.

    For loaders that do work on the host between batches and have no workers of their own. What was read ahead when
    nobody asks any more is lost, so give it something that can be iterated again.

    Args:
      source: any iterable.
      size: items ready at most.

    Raises:
      DataError: if size is not positive. An error of the source is raised where its item would have come.

    Example:
      >>> list(prefetch(range(3)))
      [0, 1, 2]
    """
    if size < 1:
        raise DataError(f"Expected prefetch to keep a positive number of items ready, got size={size}.")
    return _prefetch(source, size)


def _prefetch(source: Iterable[T], size: int) -> Iterator[T]:
    # The thread may be one item further: it holds the one for which there is no room yet.
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(size)
    end = object()
    stop = threading.Event()

    def put(item: Any, error: BaseException | None = None) -> None:
        while not stop.is_set():
            try:
                ready.put((item, error), timeout=0.1)
            except queue.Full:
                continue
            return

    def run() -> None:
        try:
            for item in source:
                put(item)
                if stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001  (it is raised again in the thread that asks)
            put(end, error)
        else:
            put(end)

    thread = threading.Thread(target=run, name="resfit-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stop.set()
        thread.join()
