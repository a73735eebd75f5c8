"""Figures of images with a title each."""

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit._utils.checks import positive_int
from resfit._utils.keywords import checked
from resfit.errors import DataError
from resfit.plots.figure import new_figure

if TYPE_CHECKING:
    import matplotlib.figure

_CHARACTERS = 20  # of a title of 9 points above an image of 1.5 inches


@checked("function arguments")
def batch(
    images: Any, labels: Any = None, class_names: Sequence[str] | None = None, count: int = 16
) -> "matplotlib.figure.Figure":
    """Draw the first images of a batch, each with its label.

    Args:
      images: (examples, height, width, channels) with 1, 3 or 4 channels, uint8 or float in [0, 1], also after an
        augmentation; or a source such as `resfit.data.folder`, from which only the drawn images are read.
      labels: class numbers (examples,), or other labels; by default those of the source.
      class_names: one name per class; by default those of the source, or numbers.
      count: the largest number of images.

    Raises:
      DataError: if images, labels and names do not fit together.

    Example:
      >>> figure = batch(np.zeros((3, 8, 8, 3), np.uint8), [0, 1, 1], ["cat", "dog"])
      >>> [axes.get_title() for axes in figure.axes]
      ['cat', 'dog', 'dog']
    """
    count = positive_int("count", count, DataError)
    if is_source(images):
        class_names = class_names or names_of(images)
        images, own, _ = images.take(slice(0, count))
        labels = own if labels is None else labels
    pictures = np.asarray(images)
    if pictures.ndim != 4 or pictures.shape[3] not in (1, 3, 4) or not len(pictures):
        raise DataError(
            f"Got images of shape {pictures.shape}. Expected (examples, height, width, channels) with 1, 3 or 4 "
            "channels. For one image pass image[None]."
        )
    shown = min(count, len(pictures))
    titles = [""] * shown
    if labels is not None:
        if len(labels) < shown:
            raise DataError(f"Got {len(pictures)} images and {len(labels)} labels. Expected one label for each image.")
        titles = [_title(label, class_names) for label in np.asarray(labels)[:shown]]
    return grid(pictures[:shown], titles)


def grid(images: np.ndarray, titles: Sequence[str], headline: str = "") -> "matplotlib.figure.Figure":
    """Return a figure of images in rows of at most eight, with a title above each.

    Args:
      images: (examples, height, width, channels), uint8 or float in [0, 1].
      titles: of one or several lines each.
      headline: the title of the figure.
    """
    columns = min(max(len(images), 4), 8)  # a narrower figure would cut the headline
    rows = math.ceil(len(images) / columns)
    lines = max(title.count("\n") + 1 for title in titles)
    figure = new_figure(1.5 * columns, (1.65 + 0.15 * lines) * rows + 0.35)
    if headline:
        figure.suptitle(headline, fontweight="bold")
    for place, (image, title) in enumerate(zip(images, titles, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(image, cmap="gray", vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    return figure


def wrapped(text: str) -> str:
    r"""Return a text in lines that fit above an image.

    Example:
      >>> wrapped("a_very_long_name_of_a_class read as cat")
      'a_very_long_name_of_\na_class read as cat'
    """
    return "\n".join(textwrap.wrap(text, _CHARACTERS)) or text


def is_source(data: Any) -> bool:
    """Return True for a source of `resfit.data`, which reads its images when they are taken."""
    return hasattr(data, "take") and not hasattr(data, "__array__")


def labels_of(source: Any) -> Any:
    """Return the labels of a source.

    Raises:
      DataError: if they are unknown.
    """
    if getattr(source, "labels", None) is None:
        raise DataError(f"The {type(source).__name__} has no labels. Expected labels. Pass labels=...")
    return source.labels


def names_of(source: Any) -> Sequence[str] | None:
    """Return the class names of a source, or None."""
    names: Sequence[str] | None = getattr(source, "classes", None)
    return names


def _title(label: Any, class_names: Sequence[str] | None) -> str:
    label = np.asarray(label)
    if label.ndim or label.dtype.kind not in "iu":
        return wrapped(np.array2string(label, precision=3, separator=", "))
    if class_names is None:
        return str(label)
    if not 0 <= label < len(class_names):
        raise DataError(f"Got the label {label} and {len(class_names)} class names. Expected one name for each class.")
    return wrapped(class_names[int(label)])
