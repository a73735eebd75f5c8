"""The result of a search: plain records."""

import csv
import dataclasses
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit import plots
from resfit._utils.paths import expand_user
from resfit.trainer.compiled import argument_name

if TYPE_CHECKING:
    import matplotlib.figure


@dataclasses.dataclass(frozen=True)
class Trial:
    """One point of a search, and its training.

    Attributes:
      number: of the trial, from 0.
      point: name -> value.
      epochs: the epochs that it trained, or would have trained if no callback had stopped it.
      score: the monitored value after the last epoch.
      history: name -> the value of each epoch, as in `History`.
    """

    number: int
    point: dict[str, Any]
    epochs: int
    score: float
    history: dict[str, list[Any]]


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The trials of a search.

    Attributes:
      trials: in the order of their numbers; in successive halving, each with the epochs that it reached.
      monitor: the name of the score.
      mode: "min" or "max", the better direction of the score.

    Example:
      >>> trials = tuple(Trial(i, {"learning_rate": rate}, 1, rate, {}) for i, rate in enumerate((0.1, 0.3, 0.2)))
      >>> found = SearchResult(trials, "val_accuracy", "max")
      >>> found.best.point, found.records[2]
      ({'learning_rate': 0.3}, {'trial': 2, 'learning_rate': 0.2, 'epochs': 1, 'val_accuracy': 0.2})
      >>> found
      <SearchResult: 3 trials, best val_accuracy 0.3 with learning_rate=0.3>
    """

    trials: tuple[Trial, ...]
    monitor: str
    mode: str

    @property
    def best(self) -> Trial:
        """The trial with the best score, among those that trained the most epochs. NaN is the worst score."""
        most = max(trial.epochs for trial in self.trials)
        return ranked((trial for trial in self.trials if trial.epochs == most), self.mode)[0]

    @property
    def records(self) -> list[dict[str, Any]]:
        """A flat dict for each trial: its number, the values of its point, epochs and score."""
        return [
            {"trial": trial.number} | trial.point | {"epochs": trial.epochs, self.monitor: trial.score}
            for trial in self.trials
        ]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the records to a CSV file, with the names in the first line."""
        with Path(expand_user(path)).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.records[0]))
            writer.writeheader()
            writer.writerows({name: plain(value) for name, value in record.items()} for record in self.records)

    def plot(self) -> "matplotlib.figure.Figure":
        """Draw the score over each value of the points. Needs `resfit[plot]`."""
        return plots.trials(self.records, self.monitor, self.best.number)

    def __repr__(self) -> str:
        best = self.best
        point = ", ".join(f"{name}={_short(value)}" for name, value in best.point.items())
        return f"<SearchResult: {len(self.trials)} trials, best {self.monitor} {best.score:.4g} with {point}>"


def ranked(trials: Iterable[Trial], mode: str) -> list[Trial]:
    """Return trials, the best score first; equal scores in the order of their numbers, NaN last."""
    sign = -1 if mode == "max" else 1
    return sorted(trials, key=lambda trial: (math.isnan(trial.score), sign * trial.score, trial.number))


def plain(value: Any) -> Any:
    """Return a value that a JSON or CSV file can hold: numbers, strings and None as they are, the rest as text."""
    return value if value is None or isinstance(value, bool | int | float | str) else argument_name(value)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(plain(value))
