"""Curves over epochs, learning rates and steps."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from resfit._utils.checks import positive_int
from resfit._utils.keywords import checked
from resfit.errors import DataError
from resfit.plots.figure import finish, matplotlib_module, new_figure

if TYPE_CHECKING:
    import matplotlib.figure

TRAINING, VALIDATION = "#4c72b0", "#dd8452"  # blue and orange, which people with any color vision can distinguish


class _Epochs(Protocol):
    """The part of `resfit.callbacks.History` that `curves` draws."""

    epoch: list[int]
    epochs: dict[str, list[int]]
    history: dict[str, list[Any]]


@checked("function arguments")
def curves(history: _Epochs) -> "matplotlib.figure.Figure":
    """Draw every value of a run over its epochs: one panel per value, with training, validation and last values.

    Args:
      history: the result of `fit`.

    Raises:
      DataError: if the history has no finished epoch.

    Example:
      >>> from resfit.callbacks import History
      >>> history = History()
      >>> history.on_epoch_end(0, {"loss": 2.3, "val_loss": 2.2})
      >>> [axes.get_title(loc="left") for axes in curves(history).axes]
      ['loss']
    """
    if not history.epoch:
        raise DataError("The history holds no finished epoch. Expected at least one. Draw the curves after fit.")
    # Values per class and matrices are not curves; the learning rate is not a result.
    curves = [
        name
        for name, values in history.history.items()
        if name != "learning_rate" and all(np.ndim(value) == 0 for value in values)
    ]
    names = list(dict.fromkeys(name.removeprefix("val_") for name in curves))
    columns = min(len(names), 3)
    rows = math.ceil(len(names) / columns)
    figure = new_figure(4.6 * columns, 3.3 * rows)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, columns, place)
        _draw_curve(axes, history, name, "training", TRAINING)
        _draw_curve(axes, history, f"val_{name}", "validation", VALIDATION)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(matplotlib_module(".ticker").MaxNLocator(integer=True))
        finish(axes, name.replace("_", " "), legend=True)
    return figure


def _draw_curve(axes: Any, history: _Epochs, key: str, label: str, color: str) -> None:
    if key in history.history:
        values, epochs = history.history[key], [epoch + 1 for epoch in history.epochs[key]]
        few = "o" if len(values) < 3 else None
        axes.plot(epochs, values, label=f"{label}  {values[-1]:#.4g}", color=color, linewidth=1.8, marker=few)


@checked("function arguments")
def learning_rate_search(
    learning_rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggestion: float
) -> "matplotlib.figure.Figure":
    """Draw the losses of a learning-rate range test over the learning rate, with the suggested learning rate.

    Args:
      learning_rates: the learning rate of each step.
      losses: the loss of each step; values that are not finite are not drawn.
      smoothed: the running mean of the losses.
      suggestion: the learning rate to mark.

    Example:
      >>> figure = learning_rate_search([0.01, 0.1, 1.0], [2.0, 1.0, 8.0], [2.0, 1.4, 5.0], 0.01)
      >>> figure.axes[0].get_xlabel()
      'learning rate'
    """
    figure = new_figure(6.0, 3.8)
    axes = figure.add_subplot()
    axes.plot(learning_rates, losses, color=TRAINING, alpha=0.3, linewidth=1, label="of each batch")
    axes.plot(learning_rates, smoothed, color=TRAINING, linewidth=2, label="smoothed")
    axes.axvline(suggestion, color=VALIDATION, linewidth=1.8, linestyle="--", label=f"suggestion  {suggestion:.2g}")
    axes.set_xscale("log")
    finite = [value for value in smoothed if math.isfinite(value)]
    low, high = min(finite), finite[0]
    margin = max(0.3 * (high - low), 0.1 * abs(high))
    axes.set_ylim(low - margin, high + margin)  # without the divergence at the end, which would flatten the curve
    axes.set_xlabel("learning rate")
    finish(axes, "loss", legend=True)
    return figure


@checked("function arguments")
def learning_rate_schedule(rate: Callable[[Any], Any], steps: int) -> "matplotlib.figure.Figure":
    """Draw a learning rate over the steps of a run.

    Args:
      rate: a function step -> learning rate: an optax schedule, or `schedules.Cosine(peak=0.1).over(epochs,
        steps_per_epoch)`.
      steps: the number of steps of the run; at most 1,000 points are drawn.

    Raises:
      DataError: for less than one step, or if a learning rate is not finite.

    Example:
      >>> figure = learning_rate_schedule(lambda step: 0.1 * 0.99**step, 100)
      >>> figure.axes[0].get_title(loc="left")
      'learning rate, at most 0.1'
    """
    steps = positive_int("steps", steps, DataError)
    shown = np.unique(np.linspace(0, steps - 1, min(steps, 1000)).round().astype(int))
    rates = np.array([float(rate(int(step))) for step in shown])
    if not np.isfinite(rates).all():
        bad = int(shown[np.flatnonzero(~np.isfinite(rates))[0]])
        raise DataError(f"The learning rate at step {bad} is not finite. Expected a number at every step.")
    figure = new_figure(6.0, 3.4)
    axes = figure.add_subplot()
    axes.plot(shown, rates, color=TRAINING, linewidth=1.8, marker="o" if len(shown) < 3 else None)
    axes.set_ylim(0 if rates.min() >= 0 else None)
    axes.set_xlabel("step")
    finish(axes, f"learning rate, at most {rates.max():.3g}")
    return figure


@checked("function arguments")
def trials(records: Sequence[Mapping[str, Any]], score: str, best: int | None = None) -> "matplotlib.figure.Figure":
    """Draw the score of each trial of a search over its values: one panel per value, with the best trial marked.

    Trials that trained fewer epochs than the longest ones are pale.

    Args:
      records: of `resfit.search`: dicts with the values, `epochs`, `trial` and the score.
      score: the name of the score.
      best: the number of the trial to mark; None to mark none.

    Raises:
      DataError: if there is no record.

    Example:
      >>> records = [{"trial": i, "lr": 0.1**i, "epochs": 1, "accuracy": 0.5 + 0.1 * i} for i in range(3)]
      >>> trials(records, "accuracy", best=2).axes[0].get_xlabel()
      'lr'
    """
    if not records:
        raise DataError("Got no records of trials. Expected at least one. Pass result.records of resfit.search.")
    names = [name for name in records[0] if name not in ("trial", "epochs", score)]
    columns = min(len(names), 3)
    rows = math.ceil(len(names) / columns)
    figure = new_figure(max(4.6 * columns, 6.0), 3.4 * rows)
    most = max(record["epochs"] for record in records)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, columns, place)
        values = [record[name] for record in records]
        for record, at in zip(records, _positions(axes, values), strict=True):
            marked = record["trial"] == best
            label = f"best  {record[score]:#.4g}" if marked else None
            alpha = 1.0 if record["epochs"] == most else 0.3
            color = VALIDATION if marked else TRAINING
            axes.plot([at], [record[score]], "o", color=color, alpha=alpha, label=label, zorder=3 if marked else 2)
        axes.set_xlabel(name.replace("_", " "))
        finish(axes, score.replace("_", " "), legend=best is not None)
    return figure


def _positions(axes: Any, values: Sequence[Any]) -> Sequence[Any]:
    """Return where values are on the horizontal axis, which becomes logarithmic for values of several magnitudes."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        if min(values) > 0 and max(values) >= 20 * min(values):
            axes.set_xscale("log")
        return values
    texts = [str(value) for value in values]
    known = list(dict.fromkeys(texts))
    axes.set_xticks(range(len(known)), known)
    return [known.index(text) for text in texts]
