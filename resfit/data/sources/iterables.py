"""Any iterable of batches: lists, loaders, generators, functions that return one."""

import inspect
import itertools
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from resfit.data.batches import Batch, Positioned
from resfit.data.sources.arrays import as_arrays
from resfit.data.values import check_values
from resfit.errors import DataError

_log = logging.getLogger("resfit")


class IterableBatches:
    """Batches that somebody else makes: `(x,)`, `(x, y)` or `(x, y, sample_weight)` tuples, bare `x`, or dicts.

    The order is the source's own. Something that can be iterated again (a list, a loader, a function that returns a
    fresh iterator) gives one pass per epoch, after `set_epoch(epoch)` if it has that method; an iterator gives what it
    has left. A dict that holds exactly one column besides "label" or "labels" is an image and its label; any other dict
    is an input of several arrays. A PyTorch loader's list of tensors is a tuple.

    Something with `state_dict` and `load_state_dict` says itself where it stands, and a resumed run goes on there. Of
    anything else a resumed run reads the pass from its beginning, and skips the batches that it has had.

    Args:
      source: the iterable, or a function without arguments that returns one.

    Raises:
      DataError: while iterating: if it yields nothing, something that is no batch, or not as many batches as its length
        promises.

    Example:
      >>> import numpy as np
      >>> batches = IterableBatches([(np.zeros((2, 4)), np.array([0, 1]))])
      >>> batches.steps, next(batches.epoch(0)).size
      (1, 2)
    """

    def __init__(self, source: Iterable[Any] | Callable[[], Iterable[Any]]) -> None:
        self._source: Any = source
        self._used = False
        self._state: tuple[Any] | None = None  # that the next pass begins in
        self._told = False
        if not isinstance(source, Iterable):
            _check_takes_nothing(source)
        length = getattr(source, "__len__", None)
        try:
            self.steps: int | None = None if length is None else length()
        except TypeError:  # a loader over a stream has the method, and no answer
            self.steps = None
        self.examples: int | None = None
        self.labels: Any = None
        self.report: Mapping[str, float] = {}
        if self.steps == 0:
            raise DataError(f"The {self._name} holds no batches. Expected at least one.")

    @property
    def description(self) -> Mapping[str, Any]:
        # A function may take the place of an iterator, and is the better one.
        lasting = isinstance(self._source, Iterable) and not isinstance(self._source, Iterator)
        return {"source": type(self._source).__name__ if lasting else None, "batches": self.steps}

    @property
    def replayable(self) -> bool:
        """Whether a resumed run can find its place: not in an iterator that may have been begun, and does not say."""
        source = self._source
        begun = not isinstance(source, Generator) or inspect.getgeneratorstate(source) != inspect.GEN_CREATED
        return not (isinstance(source, Iterator) and begun) or isinstance(source, Positioned)

    @property
    def _name(self) -> str:
        name = getattr(self._source, "__name__", None) if callable(self._source) else None
        return name or type(self._source).__name__

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        first = read = start
        for item in self._items(epoch, start):
            read, self._used = read + 1, True
            if self.steps is not None and read > self.steps:
                raise DataError(
                    f"The {self._name} promised {self.steps} batches, and goes on after them. Expected its length to "
                    "be the number of batches it yields: do several workers read the same data?"
                )
            yield as_batch(item)
        if read == first and self._used and isinstance(self._source, Iterator):
            raise DataError(
                f"The {self._name} is an iterator, and all its batches have been used. Pass something that can be "
                "iterated again (a list, a loader, a function that returns a fresh iterator), or an iterator with "
                "enough batches for all epochs."
            )
        if not read:
            remedy = (
                " An iterator that was read before, by an earlier fit for example, has nothing left: make a new one, "
                "or pass a function that returns one."
                if isinstance(self._source, Iterator)
                else ""
            )
            raise DataError(f"The {self._name} yielded no batch in epoch {epoch}. Expected at least one.{remedy}")
        if self.steps is not None and read < self.steps:
            raise DataError(
                f"The {self._name} promised {self.steps} batches and ended after {read} in epoch {epoch}. Expected all "
                "of them: it loses data, or its length is wrong."
            )

    def _items(self, epoch: int, start: int) -> Iterator[Any]:
        """What is left of a pass after so many batches."""
        state, self._state = self._state, None
        if state is None:
            skipped = start if self.replayable else 0
            yield from itertools.islice(self._pass(epoch), skipped, None)  # a stopped run had these already
            return
        if start:
            yield from self._pass(epoch, *state)
            return
        # Between two passes: it goes on with its own order, and may need to be told first that the last one is over.
        self._source.load_state_dict(state[0])
        empty = True
        for item in self._pass(epoch):
            empty = False
            yield item
        if empty:
            yield from self._pass(epoch)

    def _pass(self, epoch: int, *state: Any) -> Iterator[Any]:
        if hasattr(self._source, "set_epoch"):
            self._source.set_epoch(epoch)
        for one in state:  # after set_epoch, which may put a loader back to where its epoch begins
            self._source.load_state_dict(one)
        return iter(self._source if isinstance(self._source, Iterable) else self._source())

    def state_dict(self) -> Any:
        """The source's own place, if it knows it; None: batches are counted and skipped."""
        if isinstance(self._source, Positioned):
            return self._source.state_dict()
        if isinstance(self._source, Iterator) and not isinstance(self._source, Generator) and not self._told:
            self._told = True
            _log.warning(
                "The data are an iterator (%s) that does not say where it stands, so a run that goes on from this "
                "checkpoint cannot find its place in it. Pass a function that returns a fresh one.", self._name,
            )  # fmt: skip
        return None

    def load_state_dict(self, state: Any) -> None:
        """Goes on from `state_dict`: the next `epoch(epoch, start)` skips nothing, unless it was None."""
        self._state = None if state is None else (state,)


def _check_takes_nothing(function: Callable[..., Any]) -> None:
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise DataError(
            f"x is the function {name}, which cannot be called without arguments: {error}. Expected a function that "
            f"returns a fresh iterator of batches for every epoch: functools.partial({name}, ...)."
        ) from error
    except ValueError:  # a built-in that does not tell
        return


def as_batch(item: Any) -> Batch:
    """One item of an iterable as a batch."""
    if isinstance(item, list):
        if not item or not all(type(entry).__module__.startswith("torch") for entry in item):
            raise DataError(
                f"Expected batches as tuples (x, y) or (x, y, sample_weight), got a list of {len(item)}, which does "
                "not say what is what. Make it a tuple: (tuple(batch) for batch in loader)."
            )
        item = tuple(item)
    if isinstance(item, dict):
        item = _image_and_label(item)
    parts = item if isinstance(item, tuple) else (item,)
    if not 1 <= len(parts) <= 3:
        raise DataError(f"Expected batches (x, y) or (x, y, sample_weight), got a tuple of {len(parts)} entries.")
    # Copies: a loader may write its next batch over this one while a step still reads it.
    x, y, weight = jax.tree.map(np.array, as_arrays(*parts))
    check_values(x, y)
    return Batch(x, y, weight, None, len(jax.tree.leaves(x)[0]))


def _image_and_label(item: dict[str, Any]) -> Any:
    labels = [name for name in ("label", "labels") if name in item]
    inputs = [name for name in item if name not in labels]
    return (item[inputs[0]], item[labels[0]]) if len(labels) == len(inputs) == 1 else item
