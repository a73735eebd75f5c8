"""The threads that use one model: one of them trains, and the others read the state between two of its steps."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from resfit.errors import BusyError

_Method = TypeVar("_Method", bound=Callable[..., Any])


class Shared:
    """The base class of a state that several threads use.

    Attributes:
      lock: held by every access to the arrays, and by a training step from the moment at which it takes the old arrays
        until the new ones are in their place. A compilation, a callback and the wait for a batch do not hold it.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._training = threading.RLock()
        self._trains: tuple[int, str] | None = None  # the thread that trains, and the method that it runs

    @contextlib.contextmanager
    def training(self, method: str) -> Iterator[None]:
        """Keep other threads from training inside the block.

        Args:
          method: the name of the method that trains, for the message in another thread.

        Raises:
          BusyError: if another thread trains.
        """
        if not self._training.acquire(blocking=False):
            other = self._trains[1] if self._trains else "training"
            raise BusyError(
                f"{method} was called while {other} of the same model runs in another thread: both would change the "
                "same weights. Expected one of them at a time. Wait for the other call, or train a copy: "
                "copy.deepcopy(model)."
            )
        before = self._trains
        self._trains = before or (threading.get_ident(), method)
        try:
            yield
        finally:
            self._trains = before
            self._training.release()

    @property
    def trains_elsewhere(self) -> bool:
        """True if another thread trains, whose next step would take the arrays that this thread reads."""
        return self._trains is not None and self._trains[0] != threading.get_ident()


def locked(method: _Method) -> _Method:
    """Return a method of a `Shared` that holds the lock while it runs."""

    @functools.wraps(method)
    def call(self: Shared, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            return method(self, *args, **kwargs)

    return cast(_Method, call)
