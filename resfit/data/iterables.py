"""Any iterable of batches: lists, loaders, generators, functions that return one."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from resfit.data.arrays import as_arrays, check_finite
from resfit.data.batches import Batch
from resfit.errors import DataError


class IterableBatches:
    """Batches that somebody else makes: `(x,)`, `(x, y)` or `(x, y, sample_weight)` tuples, bare `x`, or dicts.

    The order is the source's own. Something that can be iterated again (a list, a loader, a function that returns a
    fresh iterator) gives one pass per epoch, after `set_epoch(epoch)` if it has that method; an iterator gives what it
    has left. A dict that holds exactly one column besides "label" or "labels" is an image and its label; any other dict
    is an input of several arrays. A PyTorch loader's list of tensors is a tuple.

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
        self._source = source
        self._used = False
        self._restored = False
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
    def _name(self) -> str:
        name = getattr(self._source, "__name__", None) if callable(self._source) else None
        return name or type(self._source).__name__

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        set_epoch = getattr(self._source, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        items = iter(self._source if isinstance(self._source, Iterable) else self._source())
        if not self._restored:
            for _ in itertools.islice(items, start):  # what a stopped run had read of this pass already
                pass
        self._restored = False
        first = read = start
        for item in items:
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
            raise DataError(f"The {self._name} yielded no batch in epoch {epoch}. Expected at least one.")
        if self.steps is not None and read < self.steps:
            raise DataError(
                f"The {self._name} promised {self.steps} batches and ended after {read} in epoch {epoch}. Expected all "
                "of them: it loses data, or its length is wrong."
            )

    def state_dict(self) -> Any:
        """The source's own position, if it keeps one (`state_dict`); None: batches are counted and skipped."""
        state_dict = getattr(self._source, "state_dict", None)
        return None if state_dict is None else state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Goes on from `state_dict`: the next `epoch(epoch, start)` skips nothing."""
        if state is not None:
            self._source.load_state_dict(state)  # type: ignore[union-attr]
            self._restored = True


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
    check_finite(x)
    return Batch(x, y, weight, None, len(jax.tree.leaves(x)[0]))


def _image_and_label(item: dict[str, Any]) -> Any:
    labels = [name for name in ("label", "labels") if name in item]
    inputs = [name for name in item if name not in labels]
    return (item[inputs[0]], item[labels[0]]) if len(labels) == len(inputs) == 1 else item
