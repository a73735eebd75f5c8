"""Cuts a data set into the epochs of a run."""

from collections.abc import Iterator

from resfit.data.batches import Batch, Batches
from resfit.errors import DataError


class Epochs:
    """Hands out one epoch after another: whole passes, or a fixed number of batches drawn from pass after pass.

    Args:
      batches: the data.
      steps: batches in an epoch; None for one pass. A pass that ends inside an epoch is followed by the next one, so
        that nothing is left out and no epoch is short.
      start: the number of passes begun before, which decides the order of the first one.

    Attributes:
      batches: the data.
      passes: passes begun so far, counting those before `start`.
    """

    def __init__(self, batches: Batches, steps: int | None, start: int = 0) -> None:
        if steps is not None and steps < 1:
            raise DataError(f"Expected the number of steps per epoch to be positive, got {steps}.")
        self.steps = batches.steps if steps is None else steps
        self.passes = start
        self.batches = batches
        self._fixed = steps
        self._stream = self._forever()

    def next(self) -> Iterator[Batch]:
        """The batches of the next epoch."""
        if self._fixed is None:
            yield from self._one_pass()
            return
        for _ in range(self._fixed):
            yield next(self._stream)

    def _one_pass(self) -> Iterator[Batch]:
        self.passes += 1
        return self.batches.epoch(self.passes - 1)

    def _forever(self) -> Iterator[Batch]:
        while True:
            yield from self._one_pass()
