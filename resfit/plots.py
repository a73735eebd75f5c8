"""Figures of a run, made with matplotlib. Needs `resfit[plot]`.

A notebook displays a Figure. `figure.savefig("curves.png")` writes a Figure to a file.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from resfit._utils.checks import positive_int
from resfit._utils.optional_import import load_package
from resfit.errors import DataError

if TYPE_CHECKING:
    import matplotlib.figure

    from resfit.nets.probe import BlockStatistics

TRAINING, VALIDATION = "#4c72b0", "#dd8452"  # blue and orange, which people with any color vision can distinguish
_DPI = 120


class _Epochs(Protocol):
    """The part of `resfit.callbacks.History` that `curves` draws."""

    epoch: list[int]
    history: dict[str, list[Any]]


def _figure(width: float, height: float) -> "matplotlib.figure.Figure":
    # Not pyplot: a library must not touch the user's backend or their list of open figures.
    make = _matplotlib(".figure").Figure
    figure: matplotlib.figure.Figure = make(figsize=(width, height), layout="constrained", dpi=_DPI)
    return figure


def _matplotlib(module: str = "") -> Any:
    return load_package(f"matplotlib{module}", "Drawing", "pip install 'resfit[plot]'")


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
    figure = _figure(4.6 * columns, 3.3 * rows)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, columns, place)
        _draw_curve(axes, history, name, "training", TRAINING)
        _draw_curve(axes, history, f"val_{name}", "validation", VALIDATION)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(_matplotlib(".ticker").MaxNLocator(integer=True))
        _finish(axes, name.replace("_", " "), legend=True)
    return figure


def _draw_curve(axes: Any, history: _Epochs, key: str, label: str, color: str) -> None:
    # The value is None for an epoch without it, as with validation_freq.
    points = [
        (epoch + 1, value)
        for epoch, value in zip(history.epoch, history.history.get(key, ()), strict=False)
        if value is not None
    ]
    if points:
        epochs, values = zip(*points, strict=True)
        few = "o" if len(points) < 3 else None
        axes.plot(epochs, values, label=f"{label}  {values[-1]:#.4g}", color=color, linewidth=1.8, marker=few)


def _finish(axes: Any, title: str, *, legend: bool = False) -> None:
    """Set the title and the common style of a panel."""
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False)


def confusion_matrix(
    labels: Any, predictions: Any, class_names: Sequence[str] | None = None
) -> "matplotlib.figure.Figure":
    """Draw the confusion matrix: labels as rows, predictions as columns, correct ones in blue, mistakes in orange.

    Args:
      labels: class numbers (examples,).
      predictions: class numbers (examples,), or logits (examples, classes).
      class_names: one name per class; numbers by default.

    Raises:
      DataError: if labels, predictions and names do not fit together.

    Example:
      >>> confusion_matrix([0, 1, 1], [0, 1, 0]).axes[0].get_title(loc="left")
      '2 of 3 right (66.67 %)'
    """
    labels, predictions, classes = _class_numbers(np.asarray(labels), np.asarray(predictions))
    names = _names(class_names, classes, labels)
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predictions), 1)
    side = min(1.4 + 0.44 * classes, 14)
    figure = _figure(side, side)
    axes = figure.add_subplot()
    axes.imshow(_colors(counts))
    if classes <= 30:  # numbers in more classes are not readable
        _write_counts(axes, counts)
    _label_classes(axes, names)
    right = int(np.trace(counts))
    axes.set_title(f"{right} of {len(labels)} right ({right / len(labels):.2%})".replace("%", " %"), loc="left")
    return figure


def _class_numbers(labels: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return labels and predictions as class numbers, and the number of classes."""
    _check_examples(labels, predictions=predictions)
    if predictions.ndim == 2:
        return labels, predictions.argmax(axis=1), predictions.shape[1]
    if predictions.ndim == 1 and np.issubdtype(predictions.dtype, np.integer) and predictions.min() >= 0:
        return labels, predictions, int(max(labels.max(), predictions.max())) + 1
    raise DataError(
        f"Got predictions of shape {predictions.shape}, {predictions.dtype}. Expected class numbers (examples,) from "
        "0, or logits (examples, classes) of model.predict."
    )


def _write_counts(axes: Any, counts: np.ndarray) -> None:
    for row, column in np.argwhere(counts):
        white = row == column and counts[row, column] > counts[row].sum() / 2
        color = "white" if white else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=9)


def _label_classes(axes: Any, names: list[str]) -> None:
    classes = len(names)
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


def mistakes(
    images: Any, labels: Any, logits: Any, class_names: Sequence[str] | None = None, count: int = 16
) -> "matplotlib.figure.Figure":
    r"""Draw the mistakes with the highest confidence, each with label, prediction and confidence.

    If there is no mistake, draw the images with the lowest confidence.

    Args:
      images: (examples, height, width, channels) with 1 or 3 channels, uint8 or float in [0, 1]; or a source such as
        `resfit.data.folder`, from which only the drawn images are read.
      labels: class numbers (examples,).
      logits: logits (examples, classes) of `Model.predict`.
      class_names: one name per class; numbers by default.
      count: the largest number of images.

    Raises:
      DataError: if images, labels, logits and names do not fit together.

    Example:
      >>> figure = mistakes(np.zeros((2, 8, 8, 1)), [0, 1], np.array([[0.0, 3.0], [0.0, 3.0]]))
      >>> figure.axes[0].get_title()
      '0 read as 1\n95 % sure'
    """
    labels, logits = np.asarray(labels), np.asarray(logits, np.float64)
    is_source = hasattr(images, "take") and not hasattr(images, "__array__")
    images = images if is_source else np.asarray(images)
    count = positive_int("count", count, DataError)
    _check_mistakes(images, labels, logits, is_source=is_source)
    names = _names(class_names, logits.shape[1], labels)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    said, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(said != labels)
    order = wrong[np.argsort(-sure[wrong], kind="stable")] if len(wrong) else np.argsort(sure, kind="stable")
    shown = order[:count]
    pictures = images.take(shown)[0] if is_source else images[shown]

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


def _check_mistakes(images: Any, labels: np.ndarray, logits: np.ndarray, *, is_source: bool) -> None:
    if not is_source:
        _check_examples(labels, images=images)
    elif len(images) != len(labels):
        raise DataError(f"Got {len(images)} images and {len(labels)} labels. Expected one label for each image.")
    _check_examples(labels, logits=logits)
    if not np.isfinite(logits).all():
        raise DataError(f"Got logits from {logits.min()} to {logits.max()}. Expected finite logits.")
    shape = images.take(slice(0, 1))[0].shape if is_source else images.shape
    if logits.ndim != 2 or len(shape) != 4 or shape[3] not in (1, 3):
        raise DataError(
            f"Got images of shape {shape} and logits of shape {logits.shape}. Expected (examples, height, width, 1 or "
            "3) and (examples, classes). Pass the result of model.predict as logits."
        )


def _headline(wrong: int, shown: int, examples: int) -> str:
    if wrong == 0:
        return f"No mistake among {examples} images; the {shown} least sure"
    what = f"{wrong} mistake{'s' if wrong > 1 else ''} among {examples} images"
    return f"{what}; the {shown} surest" if shown < wrong else f"{what}, the surest first" if wrong > 1 else what


def _colors(counts: np.ndarray) -> np.ndarray:
    """Return colors (classes, classes, 3) in [0, 1].

    The diagonal is blue by its share of the row. Mistakes are orange by their share of the most frequent mistake, since
    a single mistake would be invisible next to thousands of correct predictions.
    """
    colormaps = _matplotlib().colormaps

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
            f"Got labels of dtype {labels.dtype} in {shapes}. Expected class numbers (examples,). For one-hot labels "
            "pass labels.argmax(axis=1). For several labels per example draw one label: labels[:, i] and predict(x, "
            "outputs='labels')[:, i]."
        )
    if any(array.ndim == 0 or len(array) != len(labels) for array in arrays.values()):
        raise DataError(f"Got {shapes}. Expected the same number of examples. Pass the same rows in the same order.")


def _names(class_names: Sequence[str] | None, classes: int, labels: np.ndarray) -> list[str]:
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"The labels run from {labels.min()} to {labels.max()}, and there are {classes} classes. Expected 0 to "
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
    figure = _figure(6.0, 3.8)
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
    _finish(axes, "loss", legend=True)
    return figure


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
    figure = _figure(6.0, 3.4)
    axes = figure.add_subplot()
    axes.plot(shown, rates, color=TRAINING, linewidth=1.8, marker="o" if len(shown) < 3 else None)
    axes.set_ylim(0 if rates.min() >= 0 else None)
    axes.set_xlabel("step")
    _finish(axes, f"learning rate, at most {rates.max():.3g}")
    return figure


def block_statistics(blocks: "Sequence[BlockStatistics]") -> "matplotlib.figure.Figure":
    """Draw output size, gradient norm and dead channels of every block over the depth of the network.

    Args:
      blocks: the blocks of a report, `resfit.doctor(model, x, y).blocks`.

    Raises:
      DataError: if there are no blocks.

    Example:
      >>> from resfit.nets.probe import BlockStatistics
      >>> figure = block_statistics([BlockStatistics("stem", 1.0, 0.0, 0.1), BlockStatistics("head", 2.0, 0.0, 0.2)])
      >>> [axes.get_title(loc="left") for axes in figure.axes]
      ['output, root mean square', 'gradient, norm', 'dead channels, %']
    """
    if not blocks:
        raise DataError(
            "Got no blocks. Expected the blocks of a report of resfit.doctor. Pass resfit.doctor(model, x, y).blocks."
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
            # A log scale of whole decades, so that a factor of two looks small.
            positive = [value for value in values if 0 < value < math.inf]
            axes.set_xscale("log", nonpositive="clip")
            low, high = (math.floor(math.log10(pick(positive))) for pick in (min, max))
            axes.set_xlim(10 ** (low - 0.1), 10 ** (high + 1.1))
            axes.xaxis.set_minor_formatter(_matplotlib(".ticker").NullFormatter())
        axes.invert_yaxis()
        shown = range(0, len(blocks), math.ceil(len(blocks) / 50))
        axes.set_yticks(shown, [blocks[i].name if place == 1 else "" for i in shown])
        _finish(axes, title)
    return figure


def grad_cam(images: Any, maps: Any, titles: Sequence[str] | None = None, count: int = 8) -> "matplotlib.figure.Figure":
    """Draw images, and below each image the same image with its class activation map.

    Args:
      images: (examples, height, width, channels) with 1 or 3 channels, uint8 or float in [0, 1].
      maps: maps (examples, height, width) of `resfit.grad_cam`, from 0 to 1.
      titles: one title per image.
      count: the largest number of images.

    Raises:
      DataError: if images, maps and titles do not fit together.

    Example:
      >>> figure = grad_cam(np.zeros((2, 8, 8, 1)), np.ones((2, 8, 8)), ["seven", "nine"])
      >>> [axes.get_title() for axes in figure.axes]
      ['seven', '', 'nine', '']
    """
    images, maps = np.asarray(images), np.asarray(maps)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or maps.shape != images.shape[:3] or not len(images):
        raise DataError(
            f"Got images of shape {images.shape} and maps of shape {maps.shape}. Expected (examples, height, width, 1 "
            "or 3) and (examples, height, width). Pass the result of resfit.grad_cam for these images."
        )
    if titles is not None and len(titles) != len(images):
        raise DataError(f"Got {len(titles)} titles for {len(images)} images. Expected one for each.")
    shown = min(positive_int("count", count, DataError), len(images))
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
