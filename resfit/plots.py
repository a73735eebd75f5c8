"""Pictures of a run, as matplotlib Figures. Needs `resfit[plot]`.

A Figure shows itself in a notebook; `figure.savefig("curves.png")` writes it to a file.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from resfit._utils.optional_import import load_package
from resfit.errors import DataError

if TYPE_CHECKING:
    import matplotlib.figure

    from resfit.nets.probe import BlockStatistics

TRAINING, VALIDATION = "#4c72b0", "#dd8452"  # blue and orange: told apart by every kind of colour vision
_DPI = 120


class _Epochs(Protocol):
    """The part of `resfit.callbacks.History` that is drawn."""

    epoch: list[int]
    history: dict[str, list[Any]]


def _figure(width: float, height: float) -> "matplotlib.figure.Figure":
    # Not pyplot: a library must not touch the user's backend or their list of open figures.
    make = _matplotlib("figure").Figure
    figure: matplotlib.figure.Figure = make(figsize=(width, height), layout="constrained", dpi=_DPI)
    return figure


def _matplotlib(module: str) -> Any:
    return load_package(f"matplotlib.{module}", "Drawing", "pip install 'resfit[plot]'")


def curves(history: _Epochs) -> "matplotlib.figure.Figure":
    """Every value of a run over its epochs: one panel per value, training and validation together, last values named.

    Args:
      history: what `fit` returned.

    Raises:
      DataError: if no epoch was finished, so that there is nothing to draw.

    Example:
      >>> from resfit.callbacks import History
      >>> history = History()
      >>> history.on_epoch_end(0, {"loss": 2.3, "val_loss": 2.2})
      >>> [axes.get_title(loc="left") for axes in curves(history).axes]
      ['loss']
    """
    if not history.epoch:
        raise DataError("The history holds no finished epoch. Draw it after fit has run for at least one.")
    # A value per class, or a matrix, is no curve; the learning rate is a setting and no result.
    curves = [
        name
        for name, values in history.history.items()
        if name != "learning_rate" and all(np.ndim(value) == 0 for value in values)
    ]
    names = list(dict.fromkeys(name.removeprefix("val_") for name in curves))
    columns = min(len(names), 3)
    rows = math.ceil(len(names) / columns)
    figure = _figure(4.6 * columns, 3.3 * rows)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for key, who, color in ((name, "training", TRAINING), (f"val_{name}", "validation", VALIDATION)):
            # None where an epoch has no such value, as with validation_freq.
            points = [
                (epoch + 1, value)
                for epoch, value in zip(history.epoch, history.history.get(key, ()), strict=False)
                if value is not None
            ]
            if points:
                epochs, values = zip(*points, strict=True)
                few = "o" if len(points) < 3 else None
                axes.plot(epochs, values, label=f"{who}  {values[-1]:#.4g}", color=color, linewidth=1.8, marker=few)
        axes.set_title(name.replace("_", " "), loc="left", fontweight="bold")
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(_matplotlib("ticker").MaxNLocator(integer=True))
        axes.legend(frameon=False)
    return figure


def confusion_matrix(
    labels: Any, predictions: Any, class_names: Sequence[str] | None = None
) -> "matplotlib.figure.Figure":
    """How often each class (row) was taken for each class (column): right ones in blue, mistakes in orange.

    Args:
      labels: (examples,) class numbers.
      predictions: (examples,) class numbers, or (examples, classes) logits.
      class_names: one per class; numbers by default.

    Raises:
      DataError: if labels, predictions and names do not belong together.

    Example:
      >>> confusion_matrix([0, 1, 1], [0, 1, 0]).axes[0].get_title(loc="left")
      '2 of 3 right (66.67 %)'
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    _check_examples(labels, predictions=predictions)
    if predictions.ndim == 2:
        classes, predictions = predictions.shape[1], predictions.argmax(axis=1)
    elif predictions.ndim == 1 and np.issubdtype(predictions.dtype, np.integer) and predictions.min() >= 0:
        classes = int(max(labels.max(), predictions.max())) + 1
    else:
        raise DataError(
            f"Got predictions of shape {predictions.shape}, {predictions.dtype}. Expected (examples,) class numbers "
            "from 0, or (examples, classes) logits as model.predict returns them."
        )
    names = _names(class_names, classes, labels)
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predictions), 1)

    side = min(1.4 + 0.44 * classes, 14)
    figure = _figure(side, side)
    axes = figure.add_subplot()
    axes.imshow(_colors(counts))
    if classes <= 30:  # more would not be readable
        for row, column in np.argwhere(counts):
            white = row == column and counts[row, column] > counts[row].sum() / 2
            color = "white" if white else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=9)
    shown = range(0, classes, math.ceil(classes / 40))
    long = max(map(len, names)) > 2
    axes.set_xticks(shown, [names[i] for i in shown], rotation=45 if long else 0, ha="right" if long else "center")
    axes.set_yticks(shown, [names[i] for i in shown])
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    right = int(np.trace(counts))
    axes.set_title(f"{right} of {len(labels)} right ({right / len(labels):.2%})".replace("%", " %"), loc="left")
    return figure


def mistakes(
    images: Any, labels: Any, logits: Any, class_names: Sequence[str] | None = None, count: int = 16
) -> "matplotlib.figure.Figure":
    r"""The mistakes that the network was surest of: what the image shows, what the network said, and how sure it was.

    Without a mistake, the images that came nearest to one: those it was least sure of.

    Args:
      images: (examples, height, width, channels) with 1 or 3 channels, uint8 or float in [0, 1]; or a source such as
        `resfit.data.folder`, of which only the images that are shown are read.
      labels: (examples,) class numbers.
      logits: (examples, classes), as `Model.predict` returns them.
      class_names: one per class; numbers by default.
      count: how many at most.

    Raises:
      DataError: if images, labels, logits and names do not belong together.

    Example:
      >>> figure = mistakes(np.zeros((2, 8, 8, 1)), [0, 1], np.array([[0.0, 3.0], [0.0, 3.0]]))
      >>> figure.axes[0].get_title()
      '0 read as 1\n95 % sure'
    """
    labels, logits = np.asarray(labels), np.asarray(logits, np.float64)
    from_source = hasattr(images, "take") and not hasattr(images, "__array__")
    if not from_source:
        images = np.asarray(images)
        _check_examples(labels, images=images)
    elif len(images) != len(labels):
        raise DataError(f"Got {len(images)} images and {len(labels)} labels. Expected one label for each image.")
    _check_examples(labels, logits=logits)
    if count < 1 or not np.isfinite(logits).all():
        raise DataError(
            f"Got count={count} and logits from {logits.min()} to {logits.max()}. Expected a count of at least 1, and "
            "finite logits."
        )
    shape = images.take(slice(0, 1))[0].shape if from_source else images.shape
    if logits.ndim != 2 or len(shape) != 4 or shape[3] not in (1, 3):
        raise DataError(
            f"Got images of shape {shape} and logits of shape {logits.shape}. Expected (examples, height, "
            "width, 1 or 3) and (examples, classes). Pass what model.predict returned."
        )
    names = _names(class_names, logits.shape[1], labels)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    said, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(said != labels)
    order = wrong[np.argsort(-sure[wrong], kind="stable")] if len(wrong) else np.argsort(sure, kind="stable")
    shown = order[:count]
    pictures = images.take(shown)[0] if from_source else images[shown]

    columns = min(max(len(shown), 4), 8)  # a narrower figure would cut the headline
    rows = math.ceil(len(shown) / columns)
    figure = _figure(1.5 * columns, 1.95 * rows + 0.35)
    figure.suptitle(_headline(len(wrong), len(shown), len(labels)), fontweight="bold")
    for place, i in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(pictures[place - 1], cmap="gray", vmin=0, vmax=255 if pictures.dtype == np.uint8 else 1)
        axes.set_title(f"{names[labels[i]]} read as {names[said[i]]}\n{100 * sure[i]:.0f} % sure", fontsize=9)
        axes.set_axis_off()
    return figure


def _headline(wrong: int, shown: int, examples: int) -> str:
    if wrong == 0:
        return f"No mistake among {examples} images; the {shown} least sure"
    what = f"{wrong} mistake{'s' if wrong > 1 else ''} among {examples} images"
    return f"{what}; the {shown} surest" if shown < wrong else f"{what}, the surest first" if wrong > 1 else what


def _colors(counts: np.ndarray) -> np.ndarray:
    """(classes, classes, 3) colours in [0, 1].

    The diagonal is blue by its share of the row. Mistakes are orange by their share of the most frequent mistake:
    beside the diagonal's thousands one confusion would be invisible.
    """
    from matplotlib import colormaps

    rows = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(counts), dtype=bool)
    wrong = np.where(right, 0, counts)
    blue = colormaps["Blues"](0.08 + 0.77 * counts / rows)[..., :3]
    orange = colormaps["Oranges"](0.15 + 0.45 * wrong / max(wrong.max(), 1))[..., :3]
    colors: np.ndarray = np.where(right[..., None], blue, np.where((wrong > 0)[..., None], orange, 0.965))
    return colors


def _check_examples(labels: np.ndarray, **arrays: np.ndarray) -> None:
    shapes = ", ".join(f"{name} {array.shape}" for name, array in {"labels": labels, **arrays}.items())
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(labels) == 0:
        raise DataError(
            f"Got labels of dtype {labels.dtype} in {shapes}. Expected (examples,) class numbers; for one-hot labels "
            "pass labels.argmax(axis=1). Of several labels per example draw one at a time: labels[:, i] and "
            "predict(x, outputs='labels')[:, i]."
        )
    if any(array.ndim == 0 or len(array) != len(labels) for array in arrays.values()):
        raise DataError(f"Got {shapes}. Expected as many examples in each. Pass the same rows, in the same order.")


def _names(class_names: Sequence[str] | None, classes: int, labels: np.ndarray) -> list[str]:
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"The labels run from {labels.min()} to {labels.max()}, but there are {classes} classes: expected 0 to "
            f"{classes - 1}."
        )
    if class_names is None:
        return [str(i) for i in range(classes)]
    if len(class_names) < classes:
        raise DataError(f"Got {len(class_names)} class names for {classes} classes. Expected one for each.")
    return list(class_names)


def learning_rate_search(
    learning_rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggestion: float
) -> "matplotlib.figure.Figure":
    """The loss of each step of a range test over its learning rate, and the rate to begin with.

    Args:
      learning_rates: of each step.
      losses: likewise; what is not finite is left out.
      smoothed: their running mean.
      suggestion: the learning rate to mark.

    Example:
      >>> figure = learning_rate_search([0.01, 0.1, 1.0], [2.0, 1.0, 8.0], [2.0, 1.4, 5.0], 0.01)
      >>> figure.axes[0].get_xlabel()
      'learning rate'
    """
    figure = _figure(6.0, 3.8)
    axes = figure.add_subplot()
    axes.plot(learning_rates, losses, color=TRAINING, alpha=0.3, linewidth=1, label="of each batch")
    axes.plot(learning_rates, smoothed, color=TRAINING, linewidth=2, label="smoothed")
    axes.axvline(suggestion, color=VALIDATION, linewidth=1.8, linestyle="--", label=f"suggestion  {suggestion:.2g}")
    axes.set_xscale("log")
    finite = [value for value in smoothed if math.isfinite(value)]
    low, high = min(finite), finite[0]
    margin = max(0.3 * (high - low), 0.1 * abs(high))
    axes.set_ylim(low - margin, high + margin)  # the explosion at the end would flatten all that matters
    axes.set_xlabel("learning rate")
    axes.set_title("loss", loc="left", fontweight="bold")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def learning_rate_schedule(rate: Callable[[Any], Any], steps: int) -> "matplotlib.figure.Figure":
    """A learning rate over the steps of a run.

    Args:
      rate: step -> learning rate: an optax schedule, or `schedules.Cosine(peak=0.1).over(epochs, steps_per_epoch)`.
      steps: of the run; at most 1,000 of them are drawn.

    Raises:
      DataError: without a step, or if a rate is not finite.

    Example:
      >>> figure = learning_rate_schedule(lambda step: 0.1 * 0.99**step, 100)
      >>> figure.axes[0].get_title(loc="left")
      'learning rate, at most 0.1'
    """
    if steps < 1:
        raise DataError(f"Got a schedule of {steps} steps. Expected one or more.")
    shown = np.unique(np.linspace(0, steps - 1, min(steps, 1000)).round().astype(int))
    rates = np.array([float(rate(int(step))) for step in shown])
    if not np.isfinite(rates).all():
        bad = int(shown[np.flatnonzero(~np.isfinite(rates))[0]])
        raise DataError(f"The learning rate at step {bad} is not finite. Expected a number at every step.")
    figure = _figure(6.0, 3.4)
    axes = figure.add_subplot()
    axes.plot(shown, rates, color=TRAINING, linewidth=1.8, marker="o" if len(shown) < 3 else None)
    axes.set_ylim(0 if rates.min() >= 0 else None)
    axes.set_xlabel("step")
    axes.set_title(f"learning rate, at most {rates.max():.3g}", loc="left", fontweight="bold")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def block_statistics(blocks: "Sequence[BlockStatistics]") -> "matplotlib.figure.Figure":
    """The size of every block's output and of the gradient that reaches it, and its dead channels, over the depth.

    Args:
      blocks: as in `resfit.doctor(model, x, y).blocks`.

    Raises:
      DataError: if there are none.

    Example:
      >>> from resfit.nets.probe import BlockStatistics
      >>> figure = block_statistics([BlockStatistics("stem", 1.0, 0.0, 0.1), BlockStatistics("head", 2.0, 0.0, 0.2)])
      >>> [axes.get_title(loc="left") for axes in figure.axes]
      ['output, root mean square', 'gradient, norm', 'dead channels, %']
    """
    if not blocks:
        raise DataError(
            "There are no blocks to draw. Expected those of a report of resfit.doctor that ran the network."
        )
    panels = (
        ("output, root mean square", [block.rms for block in blocks], TRAINING),
        ("gradient, norm", [block.gradient for block in blocks], VALIDATION),
        ("dead channels, %", [100 * block.dead for block in blocks], "#777777"),
    )
    depth = np.arange(len(blocks))
    figure = _figure(10.5, min(1.6 + 0.26 * len(blocks), 14))
    for place, (title, values, color) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, 3, place)
        axes.plot(values, depth, color=color, marker="o", markersize=4, linewidth=1.4)
        if title.startswith("dead"):
            axes.set_xlim(-4, 104)
        elif any(0 < value < math.inf for value in values):
            # What explodes or vanishes does so by factors. Whole decades, so that a factor of two looks like one.
            positive = [value for value in values if 0 < value < math.inf]
            axes.set_xscale("log", nonpositive="clip")
            low, high = (math.floor(math.log10(pick(positive))) for pick in (min, max))
            axes.set_xlim(10 ** (low - 0.1), 10 ** (high + 1.1))
            axes.xaxis.set_minor_formatter(_matplotlib("ticker").NullFormatter())
        axes.invert_yaxis()
        shown = range(0, len(blocks), math.ceil(len(blocks) / 50))
        axes.set_yticks(shown, [blocks[i].name if place == 1 else "" for i in shown])
        axes.set_title(title, loc="left", fontweight="bold")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def grad_cam(images: Any, maps: Any, titles: Sequence[str] | None = None, count: int = 8) -> "matplotlib.figure.Figure":
    """Images above, and below them the same with the places that speak for the class.

    Args:
      images: (examples, height, width, channels) with 1 or 3 channels, uint8 or float in [0, 1].
      maps: (examples, height, width) from 0 to 1, as `resfit.grad_cam` returns them.
      titles: one per image.
      count: how many at most.

    Raises:
      DataError: if images, maps and titles do not belong together.

    Example:
      >>> figure = grad_cam(np.zeros((2, 8, 8, 1)), np.ones((2, 8, 8)), ["seven", "nine"])
      >>> [axes.get_title() for axes in figure.axes]
      ['seven', '', 'nine', '']
    """
    images, maps = np.asarray(images), np.asarray(maps)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or maps.shape != images.shape[:3] or not len(images):
        raise DataError(
            f"Got images of shape {images.shape} and maps of shape {maps.shape}. Expected (examples, height, width, 1 "
            "or 3) and (examples, height, width). Pass what resfit.grad_cam returned for these images."
        )
    if titles is not None and len(titles) != len(images):
        raise DataError(f"Got {len(titles)} titles for {len(images)} images. Expected one for each.")
    if count < 1:
        raise DataError(f"Got count={count}. Expected at least 1.")
    shown = min(count, len(images))
    figure = _figure(1.5 * shown, 3.3)
    for i in range(shown):
        for row in (0, 1):
            axes = figure.add_subplot(2, shown, row * shown + i + 1)
            axes.imshow(images[i], cmap="gray", vmin=0, vmax=255 if images.dtype == np.uint8 else 1)
            if row:
                axes.imshow(maps[i], cmap="inferno", vmin=0, vmax=1, alpha=0.65, interpolation="bilinear")
            elif titles is not None:
                axes.set_title(titles[i], fontsize=9)
            axes.set_axis_off()
    return figure
