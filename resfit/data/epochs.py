"""The epochs of a run."""

from collections.abc import Generator, Iterator, Mapping
from typing import Any

from resfit.data.batches import Batch, Batches, Positioned, check_end, whole_epoch
from resfit.data.states import packed, unpacked
from resfit.data.streaming.ahead import close
from resfit.errors import DataError


class Epochs:
    """The batches of one epoch after another: an epoch is one pass over the data, or a fixed number of steps.

    Args:
      batches: the data.
      steps: steps per epoch; None for one pass. When a pass ends inside an epoch, the next pass follows: every batch is
        used and every epoch has the same length.
      start: the number of earlier passes, which determines the order of the first pass.

    Attributes:
      batches: the data.
      fixed: True if an epoch is a number of steps, so that a pass can continue in the next epoch.
      passes: the number of passes that have started, including the earlier ones.
      taken: batches taken from the current pass. The position is (`passes`, `taken`).
    """

    def __init__(self, batches: Batches, steps: int | None, start: int = 0) -> None:
        if steps is not None and steps < 1:
            raise DataError(f"Expected steps per epoch to be positive, got {steps}.")
        check_end(batches, steps, "steps_per_epoch")
        self.steps = batches.steps if steps is None else steps
        self.passes = start
        self.taken = 0
        self._continued = False
        self.batches = batches
        self._fixed = steps
        self.fixed = steps is not None
        self._stream = self._forever()
        self._pass: Iterator[Batch] = iter(())
        self._report: Mapping[str, float] | None = None

    @property
    def replayable(self) -> bool:
        """True if the data can be read again from a saved position; False for a partly consumed iterator."""
        return bool(getattr(self.batches, "replayable", True))

    @property
    def report(self) -> Mapping[str, float]:
        """Values about the data for an epoch's logs."""
        return self.batches.report if self._report is None else self._report

    def position(self, *, inside: bool, alone: bool = True) -> dict[str, Any]:
        """Return the position after the last batch that was handed out, as JSON values and arrays.

        Args:
          inside: True inside a pass; False if the next batch is the first of the next pass.
          alone: True if this process reads all of the data; else the loader's state is not saved, because it differs
            between processes.

        Raises:
          DataError: if a checkpoint cannot hold the loader's state.
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
        """Continue from a saved `position`; data that are not `replayable` continue with their remaining batches."""
        self.passes, self.taken, self._continued = passes, taken, inside
        self.close()
        self._stream = self._forever()
        self._report = report
        if isinstance(self.batches, Positioned):
            self.batches.load_state_dict(unpacked(loader))

    def next(self, done: int = 0) -> Iterator[Batch]:
        """Iterate over the next epoch; `done` is the number of its batches that an earlier run has used."""
        # A pass that has ended and one that has not begun look alike: the next batch is of the next pass.
        within = self._continued or (self.fixed and 0 < self.taken != self.batches.steps)
        yield from whole_epoch(self.batches, self.passes - within, self._steps(done))

    def _steps(self, done: int) -> Iterator[Batch]:
        if self._fixed is None:
            yield from self._one_pass()
            return
        for _ in range(self._fixed - done):
            yield next(self._stream)

    def close(self) -> None:
        """End the threads of a pass that was not read to its end."""
        self._stream.close()
        close(self._pass)

    def _one_pass(self) -> Iterator[Batch]:
        if not self._continued:
            self.passes, self.taken = self.passes + 1, 0
        self._continued = False
        self._report = None
        self._pass = self.batches.epoch(self.passes - 1, self.taken)
        for batch in self._pass:
            self.taken += 1
            yield batch

    def _forever(self) -> Generator[Batch]:
        while True:
            yield from self._one_pass()
