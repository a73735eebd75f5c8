"""Adapters for iterables of batches: lists, loaders, generators, and functions that return an iterator."""

import inspect
import itertools
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from resfit.data.batches import Batch, Positioned
from resfit.data.sources.arrays import as_arrays
from resfit.data.sources.class_names import names_of
from resfit.data.sources.single_examples import check_batched
from resfit.data.values import check_values
from resfit.errors import DataError

_log = logging.getLogger("resfit")


class IterableBatches:
    """The batches of an iterable: `(x,)`, `(x, y)` or `(x, y, sample_weight)` tuples, `x` alone, or dicts.

    The source determines the order. A re-iterable source (a list, a loader, a function that returns a fresh iterator)
    gives one pass per epoch, after a call of `set_epoch(epoch)` if the source has this method. An iterator gives its
    remaining batches. A dict with exactly one column besides "label" or "labels" is an image and its label; any other
    dict is an input of several arrays. A list of PyTorch tensors counts as a tuple.

    A source with `state_dict` and `load_state_dict` restores its own position when a run resumes. For other sources, a
    resumed run reads the pass from the beginning and skips the batches that were already used.

    Args:
      source: the iterable, or a function without arguments that returns an iterable.

    Raises:
      DataError: during iteration, if the source yields no batch, an item that is not a batch, or another number of
        batches than its length.

    Example:
      >>> import numpy as np
      >>> batches = IterableBatches([(np.zeros((2, 4)), np.array([0, 1]))])
      >>> batches.steps, next(batches.epoch(0)).size
      (1, 2)
    """

    def __init__(self, source: Iterable[Any] | Callable[[], Iterable[Any]]) -> None:
        self._source: Any = source
        self._used = False
        self._state: tuple[Any] | None = None  # the initial state of the next pass
        self._warned = False
        if not isinstance(source, Iterable):
            _check_takes_nothing(source)
        length = getattr(source, "__len__", None)
        try:
            self.steps: int | None = None if length is None else length()
        except TypeError:  # a loader over a stream has the method, but it raises
            self.steps = None
        self.examples: int | None = None
        self.labels: Any = None
        self.classes = names_of(source)
        self.report: Mapping[str, float] = {}
        if self.steps == 0:
            raise DataError(f"The {self._name} has no batches. Expected at least one.")

    @property
    def description(self) -> Mapping[str, Any]:
        # An iterator has no name here, so that a function can replace it when a run resumes.
        lasting = isinstance(self._source, Iterable) and not isinstance(self._source, Iterator)
        return {"source": type(self._source).__name__ if lasting else None, "batches": self.steps}

    @property
    def replayable(self) -> bool:
        """False for an iterator that may be partly consumed and does not report its position."""
        source = self._source
        begun = not isinstance(source, Generator) or inspect.getgeneratorstate(source) != inspect.GEN_CREATED
        return not (isinstance(source, Iterator) and begun) or isinstance(source, Positioned)

    @property
    def _name(self) -> str:
        name = getattr(self._source, "__name__", None) if callable(self._source) else None
        return name or type(self._source).__name__

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        read = start
        for item in self._items(epoch, start):
            read, self._used = read + 1, True
            if self.steps is not None and read > self.steps:
                raise DataError(
                    f"The {self._name} promised {self.steps} batches and yields more. Expected its length to be "
                    "the number of batches. Check that several workers do not read the same data."
                )
            yield as_batch(item, self._source)
        if read == start:
            self._check_not_used_up()
        self._check_count(read, epoch)

    def _check_not_used_up(self) -> None:
        """Raise if no batch is left in an iterator that yielded batches before."""
        if self._used and isinstance(self._source, Iterator):
            raise DataError(
                f"The {self._name} is an iterator, and all its batches have been used. Pass a re-iterable source (a "
                "list, a loader, a function that returns a fresh iterator), or an iterator with enough batches for all "
                "epochs."
            )

    def _check_count(self, read: int, epoch: int) -> None:
        """Raise if a pass had no batches, or fewer than the length of the source."""
        if not read:
            remedy = (
                " An iterator that was consumed before, for example by an earlier fit, has nothing left. Make a "
                "new one, or pass a function that returns one."
                if isinstance(self._source, Iterator)
                else ""
            )
            raise DataError(f"The {self._name} yielded no batch in epoch {epoch}. Expected at least one.{remedy}")
        if self.steps is not None and read < self.steps:
            raise DataError(
                f"The {self._name} promised {self.steps} batches and ended after {read} in epoch {epoch}. "
                "Expected all of them. Correct its length, or check why batches are missing."
            )

    def _items(self, epoch: int, start: int) -> Iterator[Any]:
        """Iterate over the remainder of a pass after `start` batches."""
        state, self._state = self._state, None
        if state is None:
            skipped = start if self.replayable else 0
            yield from itertools.islice(self._pass(epoch), skipped, None)  # the stopped run used these batches
            return
        if start:
            yield from self._pass(epoch, *state)
            return
        # The state is between two passes. The source continues with its own order, and its first iteration may only
        # report that the previous pass is over.
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
        for one in state:  # after set_epoch, which may reset a loader to the start of its epoch
            self._source.load_state_dict(one)
        return iter(self._source if isinstance(self._source, Iterable) else self._source())

    def state_dict(self) -> Any:
        """Return the state of the source, or None if a resumed run has to count and skip batches."""
        if isinstance(self._source, Positioned):
            return self._source.state_dict()
        if isinstance(self._source, Iterator) and not isinstance(self._source, Generator) and not self._warned:
            self._warned = True
            _log.warning(
                "The data are an iterator (%s) without state_dict, so a run cannot restore its position in the data "
                "when it resumes from this checkpoint. Pass a function that returns a fresh iterator.", self._name,
            )  # fmt: skip
        return None

    def load_state_dict(self, state: Any) -> None:
        """Continue from `state`: the next `epoch(epoch, start)` skips no batches, unless `state` is None."""
        self._state = None if state is None else (state,)


def _check_takes_nothing(function: Callable[..., Any]) -> None:
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise DataError(
            f"x is the function {name}, which cannot be called without arguments: {error}. Expected a function that "
            f"returns a fresh iterator of batches for every epoch. Bind its arguments: functools.partial({name}, ...)."
        ) from error
    except ValueError:  # a built-in without a signature
        return


def as_batch(item: Any, source: Any) -> Batch:
    """Convert an item to a batch; `source` is the data that yielded it, for errors."""
    if isinstance(item, list):
        if not item or not all(type(entry).__module__.startswith("torch") for entry in item):
            raise DataError(
                f"Expected batches as tuples (x, y) or (x, y, sample_weight), got a list of {len(item)}. Convert it "
                "to a tuple: (tuple(batch) for batch in loader)."
            )
        item = tuple(item)
    if isinstance(item, dict):
        item = _image_and_label(item)
    parts = item if isinstance(item, tuple) else (item,)
    if not 1 <= len(parts) <= 3:
        raise DataError(f"Expected batches (x, y) or (x, y, sample_weight), got a tuple of {len(parts)} entries.")
    check_batched(parts, source)
    # A copy, because a loader may overwrite this batch while a step still reads it.
    x, y, weight = jax.tree.map(np.array, as_arrays(*parts))
    check_values(x, y)
    return Batch(x, y, weight, None, len(jax.tree.leaves(x)[0]))


def _image_and_label(item: dict[str, Any]) -> Any:
    labels = [name for name in ("label", "labels") if name in item]
    inputs = [name for name in item if name not in labels]
    return (item[inputs[0]], item[labels[0]]) if len(labels) == len(inputs) == 1 else item
