"""The points of a search, and the arguments that a point gives to a model."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resfit._utils.suggest import did_you_mean
from resfit._utils.words import use
from resfit.errors import ArgumentError, CompileError, DataError, LabelError
from resfit.losses.smoothing import check_smoothing
from resfit.model import Model

Point = dict[str, Any]
"""Name -> value."""

SMOOTHING = "label_smoothing"
_MOST = 10**6  # points of a grid
_TRIALS = 20  # by default


def draw(space: Mapping[str, Any], trials: int | None, seed: int) -> list[Point]:
    """Return the points to try.

    Args:
      space: name -> list of values, or a distribution with a method `rvs`. Lists alone are a grid, of which no point is
        drawn twice.
      trials: the number of points; None for all points of a grid, in order, or 20 points of distributions.
      seed: of the draw. The first points are the same for every number of trials.

    Raises:
      ArgumentError: for an impossible space.

    Example:
      >>> draw({"learning_rate": [0.1, 0.01], "seed": [0, 1]}, None, 0)[1]
      {'learning_rate': 0.1, 'seed': 1}
    """
    if not isinstance(space, Mapping) or not space:
        raise ArgumentError(
            f"search got space={space!r}. Expected a dict such as {{'learning_rate': scipy.stats.loguniform(1e-4, 1)}}."
        )
    lists = {name: _values(name, given) for name, given in space.items() if not hasattr(given, "rvs")}
    if len(lists) == len(space):
        return _of_grid(lists, trials, seed)
    generators = [np.random.default_rng([seed, number]) for number in range(_TRIALS if trials is None else trials)]
    return [{name: _drawn(given, random) for name, given in space.items()} for random in generators]


def _drawn(given: Any, random: np.random.Generator) -> Any:
    return _plain(given.rvs(random_state=random) if hasattr(given, "rvs") else given[int(random.integers(len(given)))])


def _values(name: str, given: Any) -> Sequence[Any]:
    if isinstance(given, str | bytes | Mapping) or not hasattr(given, "__len__") or not len(given):
        raise ArgumentError(
            f"search got {name}={given!r} in space. Expected a list of values, or a distribution with a method rvs, "
            "such as scipy.stats.loguniform(1e-4, 1). Pass a fixed value in compile_arguments."
        )
    return list(given)


def _of_grid(lists: Mapping[str, Sequence[Any]], trials: int | None, seed: int) -> list[Point]:
    shape = tuple(len(values) for values in lists.values())
    total = math.prod(shape)
    if total > _MOST:
        raise ArgumentError(f"The grid has {total} points. Expected at most {_MOST}. Use distributions.")
    order = np.arange(total) if trials is None else np.random.default_rng(seed).permutation(total)
    chosen = zip(*np.unravel_index(order[:trials], shape), strict=True)
    return [{name: _plain(lists[name][i]) for name, i in zip(lists, place, strict=True)} for place in chosen]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic | np.ndarray) and np.ndim(value) == 0 else value


def check_names(space: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Raise if a name of a space is no argument of `compile`, or has a fixed value too.

    Raises:
      ArgumentError: with the possible names.
    """
    possible = [*[*inspect.signature(Model.compile).parameters][1:], SMOOTHING]
    for name in space:
        if name not in possible:
            remedy = use(name, "arguments") or did_you_mean(name, possible).lstrip()
            if name in inspect.signature(Model.fit).parameters:
                remedy = "All trials have the same arguments of Model.fit: pass it to search, or in fit_arguments."
            raise ArgumentError(
                f"search got {name!r} in space. {remedy}{' ' if remedy else ''}Expected {SMOOTHING!r} or an argument "
                f"of Model.compile: {', '.join(possible[:-1])}."
            )
        if name in fixed:
            raise ArgumentError(f"search got {name!r} in space and in compile_arguments. Expected it in one of them.")


def compile_arguments(point: Point, fixed: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return the arguments of `Model.compile` for a point."""
    given = {"seed": seed} | dict(fixed) | point
    return {name: value for name, value in given.items() if name != SMOOTHING}


def smoothed(labels: Any, value: float, classes: int | None) -> np.ndarray:
    """Return labels with label smoothing, as probabilities (examples, classes) float32.

    The cross-entropy with these labels is that of `losses.CrossEntropy(label_smoothing=value)`, and all values run one
    program.

    Args:
      labels: class numbers (examples,), or probabilities (examples, classes).
      value: the label smoothing, in [0, 1).
      classes: their number; None for that of the largest label.

    Raises:
      DataError: for labels that are not such arrays.

    Example:
      >>> smoothed([1, 0], 0.5, 2)
      array([[0.25, 0.75],
             [0.75, 0.25]], dtype=float32)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CompileError(f"Expected {SMOOTHING} in space to be numbers, got {value!r}.")
    check_smoothing(value)
    if labels is None:
        raise DataError(
            f"search got {SMOOTHING!r} in space and data that bring their labels. Expected data=(x, y) with arrays. "
            "Use compile_arguments={'loss': resfit.losses.CrossEntropy(label_smoothing=0.1)} for one value."
        )
    labels = np.asarray(labels)
    if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer) and labels.size:
        classes = int(labels.max()) + 1 if classes is None else classes
        if labels.min() < 0 or labels.max() >= classes:
            raise LabelError(
                f"The labels run from {labels.min()} to {labels.max()}, and the network has {classes} outputs. "
                f"Expected 0 to {classes - 1}."
            )
        labels = np.eye(classes, dtype=np.float32)[labels]
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.floating):
        raise DataError(
            f"search got {SMOOTHING!r} in space and labels of shape {labels.shape} and dtype {labels.dtype}. Expected "
            "data=(x, y) with class numbers (examples,) or probabilities (examples, classes)."
        )
    spread: np.ndarray = (1 - value) * labels + value / labels.shape[1]
    return spread.astype(np.float32)
