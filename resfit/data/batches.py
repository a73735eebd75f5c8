"""The one form in which data reaches the trainer."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np


class Batch(NamedTuple):
    """Some examples, on the host.

    Attributes:
      x: inputs: an array (batch, ...) or a pytree of such.
      y: labels likewise, or None.
      weight: (batch,) float32 or None, how much each example counts in the loss.
      mask: (batch,) booleans or None (all true): which rows are examples, and which only fill the shape.
      size: the number of examples.
    """

    x: Any
    y: Any
    weight: np.ndarray | None
    mask: np.ndarray | None
    size: int


@runtime_checkable
class Batches(Protocol):
    """A data set in batches. An epoch's order is a pure function of (seed, epoch); a position is (epoch, batch)."""

    @property
    def steps(self) -> int | None:
        """Batches in an epoch, or None if nobody can know."""

    @property
    def examples(self) -> int | None:
        """Examples in an epoch, or None if nobody can know."""

    @property
    def labels(self) -> Any:
        """All labels as one array or pytree, for checks before training; None where they only come with the batches."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, from the first."""
