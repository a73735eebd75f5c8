"""Reading on after an interruption."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from resfit.errors import DataError

_log = logging.getLogger("resfit")

T = TypeVar("T")

FIRST_PAUSE = 0.5  # seconds; doubled with every failure

# What clients of the network raise that is no OSError, by the package it comes from.
_CLIENTS = frozenset({"aiohttp", "fsspec", "httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub", "requests"})
# Trying again brings none of these about.
_FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


class ReadingFailed(Exception):  # noqa: N818 - it names an event
    """Reading stopped for good: its cause is the last error."""

    def __init__(self, name: str, rows: int, tries: int, error: Exception) -> None:
        super().__init__(name, rows, tries)
        again = f", at the last of {tries} tries" if tries > 1 else ""
        self.story = f"{name} could not be read beyond row {rows}{again}: {type(error).__name__}: {error}"


def is_transient(error: Exception) -> bool:
    """Whether the same reading may succeed a little later: errors of files and networks, but not a missing file."""
    if isinstance(error, _FINAL):
        return False
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(packages & _CLIENTS)


def read_on(name: str, read: Callable[[int], Iterator[T]], start: int, retries: int) -> Iterator[T]:
    """The items from `start` on, reading again from where it stopped after an error of a file or the network.

    Args:
      name: of what is read.
      read: start -> the items from there on.
      start: the first item.
      retries: how often to try again in a row, with pauses of 0.5, 1, 2, ... seconds; an item read starts the count
        anew.

    Raises:
      ReadingFailed: after the last try, and at once for errors that a retry does not mend.
      DataError: if reading raised one.
    """
    row, failures = start, 0
    items = None
    while True:
        try:
            if items is None:
                items = read(row)
            item = next(items)
        except StopIteration:
            return
        except DataError:  # says itself what is wrong
            raise
        except Exception as error:
            transient = is_transient(error)
            failures += 1
            if not transient or failures > retries:
                raise ReadingFailed(name, row, failures, error) from error
            pause = FIRST_PAUSE * 2 ** (failures - 1)
            _log.warning(
                "%s: %s: %s after row %d. Trying again in %.1f s (%d of %d).",
                name, type(error).__name__, error, row, pause, failures, retries,
            )  # fmt: skip
            time.sleep(pause)
            items = None
        else:
            row, failures = row + 1, 0
            yield item


def call_again(name: str, call: Callable[[], T], retries: int) -> T:
    """What the call returns, trying again as `read_on` does."""
    return next(read_on(name, lambda _: iter([call()]), 0, retries))
