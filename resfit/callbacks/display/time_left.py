"""Estimates of the time left in an epoch and in a run."""

import time

from resfit.callbacks.stopwatch import Stopwatch


class TimeLeft:
    """Estimates the seconds to the end of the epoch and of the run, by the finished steps and epochs.

    Compilation does not count as the time of a step. While a program compiles, the time of the last compilation is
    expected, so that the estimate falls during the compilation of a partial last batch too.
    """

    def __init__(self) -> None:
        self._finished: list[float] = []  # seconds of each epoch
        self._validation_before = self._last_compilation = 0.0
        self._compiling_since: float | None = None
        self._per_step: float | None = None  # in a new epoch, first that of the epoch before
        self.begin_epoch(None)

    def begin_epoch(self, steps: int | None) -> None:
        """Start an epoch with this number of steps; None if the number is unknown."""
        self._steps = steps
        self._first: int | None = None  # the number of steps before the first one of this run
        self._training, self._validating = Stopwatch(), Stopwatch()
        self._validating.hold()

    def end_epoch(self) -> None:
        """Note how long the epoch took."""
        self._validation_before = self._validating.seconds
        self._finished.append(self._training.seconds + self._validation_before)

    def step(self, done: int) -> None:
        """Note that the device has finished the first `done` steps of the epoch."""
        if self._first is None:
            self._first = done - 1  # a resumed epoch begins later
        self._per_step = self._training.seconds / (done - self._first)

    def validate(self, begins: bool) -> None:
        """Note that a validation begins or ends."""
        held, running = (self._training, self._validating) if begins else (self._validating, self._training)
        held.hold()
        running.release()

    def compile(self, begins: bool) -> None:
        """Note that a compilation begins or ends."""
        now = time.perf_counter()
        for watch in (self._training, self._validating):
            (watch.hold if begins else watch.release)()
        if not begins and self._compiling_since is not None:
            self._last_compilation = now - self._compiling_since
        self._compiling_since = now if begins else None

    @property
    def trained_seconds(self) -> float:
        """The seconds of the epoch so far, without compilation and validation."""
        return self._training.seconds

    @property
    def compiling_seconds(self) -> float:
        """The seconds since the compilation began that is running; 0 if none is."""
        return 0.0 if self._compiling_since is None else time.perf_counter() - self._compiling_since

    def in_epoch(self) -> float | None:
        """Return the seconds to the end of the epoch with its validation; None before the first step."""
        if self._per_step is None or self._steps is None:
            return None
        training = self._per_step * (self._steps - (self._first or 0)) - self._training.seconds
        validating = self._validation_before - self._validating.seconds
        compiling = 0.0 if self._compiling_since is None else self._last_compilation - self.compiling_seconds
        return max(0.0, training) + max(0.0, validating) + max(0.0, compiling)

    def in_run(self, epochs: int) -> float | None:
        """Return the seconds to the end of the run, with this number of epochs after the current one."""
        left = self.in_epoch()
        if left is None or self._per_step is None or self._steps is None:
            return None
        finished = self._finished
        each = sum(finished) / len(finished) if finished else self._per_step * self._steps
        return left + epochs * each
