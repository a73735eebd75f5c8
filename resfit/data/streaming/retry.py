"""Retries after transient errors of files and networks."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from resfit.errors import DataError

_log = logging.getLogger("resfit")

T = TypeVar("T")

FIRST_PAUSE = 0.5  # seconds; doubles with every failure

# Packages whose errors are network errors although some are not an OSError.
_CLIENTS = frozenset({"aiohttp", "fsspec", "httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub", "requests"})
# A retry does not fix these errors.
_FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


class ReadingFailed(Exception):  # noqa: N818 - it names an event
    """The event that all retries have failed; `__cause__` is the last error."""

    def __init__(self, name: str, rows: int, tries: int, error: Exception) -> None:
        super().__init__(name, rows, tries)
        again = f" after {tries} tries" if tries > 1 else ""
        self.story = (
            f"{name} could not be read beyond row {rows}{again}: {type(error).__name__}: {str(error).rstrip('.')}."
        )


def is_transient(error: Exception) -> bool:
    """Return True if a retry may succeed: for file and network errors, but not for a missing file."""
    if isinstance(error, _FINAL):
        return False
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(packages & _CLIENTS)


def read_on(name: str, read: Callable[[int], Iterator[T]], start: int, retries: int) -> Iterator[T]:
    """Iterate over items, starting at `start`; after a file or network error, retry from the current item.

    Args:
      name: the name of the data for messages.
      read: start -> an iterator over the items, starting at `start`.
      start: the first item.
      retries: the number of consecutive retries, with pauses of 0.5, 1, 2, ... seconds; an item resets the count.

    Raises:
      ReadingFailed: after the last retry, and immediately for errors that a retry does not fix.
      DataError: if `read` raises one.
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
        except DataError:
            raise
        except Exception as error:
            transient = is_transient(error)
            failures += 1
            if not transient or failures > retries:
                raise ReadingFailed(name, row, failures, error) from error
            pause = FIRST_PAUSE * 2 ** (failures - 1)
            _log.warning(
                "%s: %s: %s after row %d. Retry in %.1f s (%d of %d).",
                name, type(error).__name__, error, row, pause, failures, retries,
            )  # fmt: skip
            time.sleep(pause)
            items = None
        else:
            row, failures = row + 1, 0
            yield item


def call_again(name: str, call: Callable[[], T], retries: int) -> T:
    """Return the result of a call, with retries as in `read_on`."""
    return next(read_on(name, lambda _: iter([call()]), 0, retries))
