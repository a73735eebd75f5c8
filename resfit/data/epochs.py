"""Cuts a data set into the epochs of a run."""

from collections.abc import Generator, Iterator, Mapping
from typing import Any

from resfit.data.batches import Batch, Batches, Positioned
from resfit.data.states import packed, unpacked
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
        self._report: Mapping[str, float] | None = None

    @property
    def replayable(self) -> bool:
        """Whether a position can be gone back to: not in an iterator that somebody has begun to use up."""
        return bool(getattr(self.batches, "replayable", True))

    @property
    def report(self) -> Mapping[str, float]:
        """What the logs of an epoch should say about its data."""
        return self.batches.report if self._report is None else self._report

    def position(self, *, inside: bool, alone: bool = True) -> dict[str, Any]:
        """Where the run is in the data, in JSON values and arrays: after the last batch that was handed out.

        Args:
          inside: whether the pass goes on; False if the next batch is the first of the next pass.
          alone: whether this process reads all of the data: what its loader says of its place is not true of others.

        Raises:
          DataError: if what the loader says of its place cannot be written down.
        """
        loader = self.batches.state_dict() if alone and isinstance(self.batches, Positioned) else None
        return {
            "passes": self.passes,
            "taken": self.taken,
            "inside": inside or self.fixed,
            "report": dict(self.report),
            "loader": packed(loader),
        }

    def seek(
        self, passes: int, taken: int, *, inside: bool, report: Mapping[str, float] | None = None, loader: Any = None
    ) -> None:
        """Goes on from another run's `position`; with what the data have left, if they are not `replayable`."""
        self.passes, self.taken, self._continued = passes, taken, inside
        self._stream.close()  # of a run that goes back, in the middle of a pass
        self._stream = self._forever()
        self._report = report
        if isinstance(self.batches, Positioned):
            self.batches.load_state_dict(unpacked(loader))

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
        self._report = None
        for batch in self.batches.epoch(self.passes - 1, self.taken):
            self.taken += 1
            yield batch

    def _forever(self) -> Generator[Batch]:
        while True:
            yield from self._one_pass()
