"""Figures of predicted classes."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit._utils.checks import positive_int
from resfit._utils.keywords import checked
from resfit.errors import DataError
from resfit.plots.figure import matplotlib_module, new_figure
from resfit.plots.images import grid, is_source, labels_of, names_of, wrapped

if TYPE_CHECKING:
    import matplotlib.figure


@checked("function arguments")
def confusion_matrix(
    labels: Any, predictions: Any, class_names: Sequence[str] | None = None
) -> "matplotlib.figure.Figure":
    """Draw the confusion matrix: labels as rows, predictions as columns, correct ones in blue, mistakes in orange.

    Args:
      labels: class numbers (examples,); or a source such as `resfit.data.folder`, for its labels and class names.
      predictions: class numbers (examples,), or logits (examples, classes).
      class_names: one name per class; by default those of the source, or numbers.

    Raises:
      DataError: if labels, predictions and names do not fit together.

    Example:
      >>> confusion_matrix([0, 1, 1], [0, 1, 0]).axes[0].get_title(loc="left")
      '2 of 3 right (66.67 %)'
    """
    if is_source(labels):
        labels, class_names = labels_of(labels), class_names or names_of(labels)
    labels, predictions, classes = _class_numbers(np.asarray(labels), np.asarray(predictions))
    names = _names(class_names, classes, labels)
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predictions), 1)
    longest = max(len(line) for name in names for line in wrapped(name).split("\n"))
    side = min(1.4 + 0.44 * classes, 14) + 0.08 * max(longest - 8, 0)
    figure = new_figure(side, side)
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
    names = [wrapped(name) for name in names]
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


@checked("function arguments")
def mistakes(
    images: Any,
    labels: Any = None,
    logits: Any = None,
    class_names: Sequence[str] | None = None,
    count: int = 16,
) -> "matplotlib.figure.Figure":
    r"""Draw the mistakes with the highest confidence, each with label, prediction and confidence.

    If there is no mistake, draw the images with the lowest confidence.

    Args:
      images: (examples, height, width, channels) with 1 or 3 channels, uint8 or float in [0, 1]; or a source such as
        `resfit.data.folder`, from which only the drawn images are read.
      labels: class numbers (examples,); by default those of the source.
      logits: logits (examples, classes) of `Model.predict`.
      class_names: one name per class; by default those of the source, or numbers.
      count: the largest number of images.

    Raises:
      DataError: if images, labels, logits and names do not fit together, or logits are missing.

    Example:
      >>> figure = mistakes(np.zeros((2, 8, 8, 1)), [0, 1], np.array([[0.0, 3.0], [0.0, 3.0]]))
      >>> figure.axes[0].get_title()
      '0 read as 1\n95 % sure'
    """
    if logits is None:
        raise DataError(
            "mistakes got no logits. Expected the logits of model.predict(images). Pass them: mistakes(images, labels, "
            "logits), or mistakes(source, logits=logits) for a source such as resfit.data.folder."
        )
    reads = is_source(images)
    if reads:
        labels, class_names = labels_of(images) if labels is None else labels, class_names or names_of(images)
    labels, logits = np.asarray(labels), np.asarray(logits, np.float64)
    images = images if reads else np.asarray(images)
    count = positive_int("count", count, DataError)
    _check_mistakes(images, labels, logits, is_source=reads)
    names = _names(class_names, logits.shape[1], labels)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    said, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(said != labels)
    order = wrong[np.argsort(-sure[wrong], kind="stable")] if len(wrong) else np.argsort(sure, kind="stable")
    shown = order[:count]
    titles = [wrapped(f"{names[labels[i]]} read as {names[said[i]]}") + f"\n{100 * sure[i]:.0f} % sure" for i in shown]
    pictures = images.take(shown)[0] if reads else images[shown]
    return grid(pictures, titles, _headline(len(wrong), len(shown), len(labels)))


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
    colormaps = matplotlib_module().colormaps

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
