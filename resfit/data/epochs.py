"""Cuts a data set into the epochs of a run."""

from collections.abc import Generator, Iterator

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
      fixed: whether an epoch is a number of steps, and a pass may go on in the next one.
      passes: passes begun so far, counting those before `start`.
      taken: batches taken of the pass that was begun last; with `passes` the whole position.
    """

    def __init__(self, batches: Batches, steps: int | None, start: int = 0) -> None:
        if steps is not None and steps < 1:
            raise DataError(f"Expected the number of steps per epoch to be positive, got {steps}.")
        self.steps = batches.steps if steps is None else steps
        self.passes = start
        self.taken = 0
        self._continued = False
        self.batches = batches
        self._fixed = steps
        self.fixed = steps is not None
        self._stream = self._forever()

    def seek(self, passes: int, taken: int, *, inside: bool) -> None:
        """Goes on from another run's position.

        Args:
          passes: its `passes`.
          taken: its `taken`.
          inside: whether its pass goes on; False if the next batch is the first of the next pass.
        """
        self.passes, self.taken, self._continued = passes, taken, inside
        self._stream.close()  # of a run that goes back, in the middle of a pass
        self._stream = self._forever()

    def next(self, done: int = 0) -> Iterator[Batch]:
        """The batches of the next epoch; done: how many of them another run has had already."""
        if self._fixed is None:
            yield from self._one_pass()
            return
        for _ in range(self._fixed - done):
            yield next(self._stream)

    def _one_pass(self) -> Iterator[Batch]:
        if not self._continued:
            self.passes, self.taken = self.passes + 1, 0
        self._continued = False
        for batch in self.batches.epoch(self.passes - 1, self.taken):
            self.taken += 1
            yield batch

    def _forever(self) -> Generator[Batch]:
        while True:
            yield from self._one_pass()
