"""The line of the running epoch, evaluation or prediction."""

import dataclasses

from resfit.callbacks.display.text import clock, fitted, ranked
from resfit.callbacks.display.time_left import TimeLeft

_BAR = 10


@dataclasses.dataclass
class Line:
    """The running epoch, evaluation or prediction: its title, progress and newest values.

    Attributes:
      title: "Epoch 2/10", "Evaluate" or "Predict".
      steps: the number of steps; None if it is unknown.
      time: estimates the time left.
      epochs_after: the number of epochs after this one.
      done: the number of finished steps.
      images: the number of images in these steps.
      values: the newest values, as text.
      status: "validating", or nothing.
    """

    title: str
    steps: int | None
    time: TimeLeft
    epochs_after: int = 0
    done: int = 0
    images: int = 0
    values: dict[str, str] = dataclasses.field(default_factory=dict)
    status: str = ""

    def text(self, width: int, *, ascii_only: bool = False) -> str:
        """Return the line as it is now, without the parts that do not fit the width: bar and rate go first."""
        left = self.time.in_epoch()
        run = self.time.in_run(self.epochs_after) if self.epochs_after else None
        compiling = self.time.compiling_seconds
        status = f"compiling {clock(compiling)}" if compiling else self.status
        first, *others = ranked(self.values) or [""]
        rank = {"loss": 4, first: 2} | {name: 7 for name in others if name != "loss"}
        return fitted(
            [
                (0, self.title),
                (9, self._bar(ascii_only)),
                (5, f"{self.done}/{'?' if self.steps is None else self.steps}"),
                (3, "" if left is None else f"{clock(left)} left"),
                (6, "" if run is None else f"run {clock(run)}"),
                (1, status),
                *((rank[name], f"{name} {text}") for name, text in self.values.items()),
                (8, self.rate),
            ],
            width,
        )

    def finished(self, width: int, seconds: float) -> str:
        """Return the line of an evaluation or a prediction that ended."""
        values = [(place + 1, name) for place, name in enumerate(ranked(self.values))]
        ranks = {name: place for place, name in values}
        return fitted(
            [
                (0, self.title),
                (99, f"{self.done}/{self.done if self.steps is None else self.steps}"),
                (100, f"{seconds:.1f} s"),
                (101, self.rate),
                *((ranks[name], f"{name} {text}") for name, text in self.values.items()),
            ],
            width,
        )

    @property
    def rate(self) -> str:
        """The images per second, without compilation and validation."""
        text = self.images_per_second
        return f"{text} images/s" if text else ""

    @property
    def images_per_second(self) -> str:
        """The number of `rate`, as text; empty if it is unknown."""
        seconds = self.time.trained_seconds
        return f"{self.images / seconds:,.0f}" if self.images and seconds > 0 else ""

    def _bar(self, ascii_only: bool) -> str:
        if not self.steps:
            return ""
        filled = min(_BAR, self.done * _BAR // self.steps)
        return ("=" if ascii_only else "━") * filled + ("-" if ascii_only else "─") * (_BAR - filled)
