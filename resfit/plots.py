"""Pictures of a run, as matplotlib Figures. Needs `resfit[plot]`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import matplotlib.figure

    from resfit.callbacks import History


def _figure(**options: Any) -> "matplotlib.figure.Figure":
    # Not pyplot: a library must not touch the user's backend or their list of open figures.
    from matplotlib.figure import Figure

    return Figure(layout="constrained", **options)


def curves(history: "History") -> "matplotlib.figure.Figure":
    """Every value of a run over its epochs: one panel per value, training and validation together.

    Args:
      history: what `fit` returned.

    Example:
      >>> from resfit.callbacks import History
      >>> history = History()
      >>> history.on_epoch_end(0, {"loss": 2.3, "val_loss": 2.2})
      >>> len(curves(history).axes)
      1
    """
    names = list(dict.fromkeys(name.removeprefix("val_") for name in history.history))
    figure = _figure(figsize=(4.5 * max(len(names), 1), 3.4))
    epochs = [epoch + 1 for epoch in history.epoch]
    for i, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), i + 1)
        for key, label, color in ((name, "training", "#4c72b0"), (f"val_{name}", "validation", "#dd8452")):
            if key in history.history:
                points = [(e, v) for e, v in zip(epochs, history.history[key], strict=True) if v is not None]
                axes.plot(*zip(*points, strict=True), label=label, color=color, marker="o" if len(points) < 2 else None)
        axes.set_xlabel("epoch")
        axes.set_title(name.replace("_", " "))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False)
    return figure


def confusion_matrix(
    labels: Any, predictions: Any, class_names: Sequence[str] | None = None
) -> "matplotlib.figure.Figure":
    """How often each class (row) was taken for each class (column).

    Args:
      labels: (examples,) class numbers.
      predictions: (examples,) class numbers, or (examples, classes) logits.
      class_names: one per class; numbers by default.

    Example:
      >>> figure = confusion_matrix([0, 1, 1], [0, 1, 0])
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    classes = predictions.shape[1] if predictions.ndim == 2 else int(max(labels.max(), predictions.max())) + 1
    if predictions.ndim == 2:
        predictions = predictions.argmax(axis=1)
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predictions), 1)
    names = list(class_names) if class_names is not None else [str(i) for i in range(classes)]
    side = 1.5 + 0.45 * classes
    figure = _figure(figsize=(side, side))
    axes = figure.add_subplot()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(counts):
        color = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(classes), names, rotation=45 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(classes), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{int(np.trace(counts))} of {len(labels)} right")
    return figure


def mistakes(
    images: Any, labels: Any, logits: Any, class_names: Sequence[str] | None = None, count: int = 16
) -> "matplotlib.figure.Figure":
    """The mistakes that the network was surest of, with what it said and how sure it was.

    Args:
      images: (examples, height, width, channels), uint8 or float in [0, 1].
      labels: (examples,) class numbers.
      logits: (examples, classes).
      class_names: one per class; numbers by default.
      count: how many at most.

    Example:
      >>> figure = mistakes(np.zeros((2, 8, 8, 1)), [0, 1], np.array([[0.0, 3.0], [0.0, 3.0]]))
    """
    images, labels, logits = np.asarray(images), np.asarray(labels), np.asarray(logits, np.float64)
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    guesses = scores.argmax(axis=1)
    wrong = np.flatnonzero(guesses != labels)
    wrong = wrong[np.argsort(-scores[wrong, guesses[wrong]])][:count]
    names = list(class_names) if class_names is not None else [str(i) for i in range(logits.shape[1])]
    columns = min(max(len(wrong), 1), 8)
    rows = -(-max(len(wrong), 1) // columns)
    figure = _figure(figsize=(max(1.4 * columns, 4), 1.8 * rows + 0.4))
    figure.suptitle(f"{(guesses != labels).sum()} mistakes of {len(labels)}, the surest first")
    for place, i in enumerate(wrong):
        axes = figure.add_subplot(rows, columns, place + 1)
        image = images[i]
        axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", interpolation="nearest")
        axes.set_title(f"{names[labels[i]]} → {names[guesses[i]]}\n{scores[i, guesses[i]]:.0%}", fontsize=9)
        axes.set_axis_off()
    return figure
