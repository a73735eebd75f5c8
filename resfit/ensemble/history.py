"""The record of the fit of an ensemble."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from resfit.callbacks import History
from resfit.callbacks.display.text import html_table, number


class EnsembleHistory:
    """The logs of every epoch, with a value for each member.

    Attributes:
      history: name -> one array (members, ...) for each epoch that has the value; NaN for a member that had stopped.
      epochs: name -> the numbers of the epochs of its values.
      epoch: the numbers of all epochs.
      members: the `History` of each member.

    Example:
      >>> history = EnsembleHistory()
      >>> history.add(0, {"loss": np.array([2.0, 4.0])})
      >>> history.mean["loss"], history.standard_error["loss"]
      (array([3.]), array([1.]))
      >>> history
      <EnsembleHistory: 1 epoch, loss 3.0000 ± 1.0000>
    """

    def __init__(self) -> None:
        self.history: dict[str, list[np.ndarray]] = {}
        self.epochs: dict[str, list[int]] = {}
        self.epoch: list[int] = []
        self.members: list[History] = []

    def add(self, epoch: int, logs: Mapping[str, np.ndarray]) -> None:
        """Add the values of an epoch."""
        self.epoch.append(epoch)
        for name, values in logs.items():
            self.history.setdefault(name, []).append(values)
            self.epochs.setdefault(name, []).append(epoch)

    def put(self, members: Sequence[History]) -> None:
        """Take over the records of all members, whose fits have ended."""
        self.__init__()  # type: ignore[misc]
        self.members = list(members)
        records = [_by_epoch(one) for one in members]
        for epoch in sorted({epoch for record in records for epoch in record}):
            self.add(epoch, stacked([record.get(epoch, {}) for record in records]))

    @property
    def mean(self) -> dict[str, np.ndarray]:
        """The mean over the members that trained, by name: (epochs, ...)."""
        return {name: np.array([mean(one) for one in values]) for name, values in self.history.items()}

    @property
    def standard_error(self) -> dict[str, np.ndarray]:
        """The standard error of the mean, by name: (epochs, ...). NaN for a single member."""
        return {name: np.array([standard_error(one) for one in values]) for name, values in self.history.items()}

    def __repr__(self) -> str:
        epochs = len(self.epoch)
        last = texts({name: values[-1] for name, values in self.history.items()})
        found = "".join(f", {name} {text}" for name, text in last.items())
        return f"<{type(self).__name__}: {epochs} epoch{'' if epochs == 1 else 's'}{found}>"

    def _repr_html_(self) -> str:
        """Return a table with a row per epoch, for notebooks."""
        rows: dict[int, dict[str, str]] = {epoch: {"epoch": str(epoch + 1)} for epoch in self.epoch}
        for name, values in self.history.items():
            for epoch, one in zip(self.epochs[name], values, strict=True):
                rows[epoch] |= texts({name: one})
        return html_table(list(rows.values()))


def stacked(logs: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Return the values of all members by name, (members, ...) float64; NaN for a member without the value.

    Example:
      >>> stacked([{"loss": 1.0}, {}])
      {'loss': array([ 1., nan])}
    """
    every = list(logs)
    names = dict.fromkeys(name for one in every for name in one)
    shapes = {name: np.shape(next(one[name] for one in every if name in one)) for name in names}
    return {
        name: np.array([one.get(name, np.full(shape, np.nan)) for one in every], np.float64)
        for name, shape in shapes.items()
    }


def mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the members without NaN, (...); where all members are NaN, NaN."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        result: np.ndarray = np.where(known, values, 0).sum(0) / known.sum(0)
    return result


def standard_error(values: np.ndarray) -> np.ndarray:
    """Return the standard error of `mean`: the deviation of the sample by the root of its size; NaN for one member."""
    count = (~np.isnan(values)).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = np.nansum(np.square(values - mean(values)), 0)
        result: np.ndarray = np.sqrt(squares / (count - 1) / count)
    return result


def texts(logs: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return mean and standard error, if there is one, as text, by name, of the values with one number for each member.

    Example:
      >>> texts({"loss": np.array([0.987, 0.9874]), "accuracy": np.array([0.5])})
      {'loss': '0.9872 ± 0.0002', 'accuracy': '0.5000'}
    """
    return {name: _text(name, values) for name, values in logs.items() if values.ndim == 1}


def _text(name: str, values: np.ndarray) -> str:
    middle, error = number(name, float(mean(values))), float(standard_error(values))
    if np.isnan(error):  # of a single member
        return middle
    digits = re.fullmatch(r"-?\d+\.(\d+)", middle)
    same = f"{error:.{len(digits[1])}f}" if digits and len(digits[1]) <= 4 else number(name, error)
    return f"{middle} ± {same}"  # the same number of digits: columns are aligned


def _by_epoch(history: History) -> dict[int, dict[str, Any]]:
    """Return the logs of each epoch."""
    found: dict[int, dict[str, Any]] = {epoch: {} for epoch in history.epoch}
    for name, values in history.history.items():
        for epoch, value in zip(history.epochs[name], values, strict=True):
            found[epoch][name] = value
    return found
