"""Stacking of single images and labels into batches."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from resfit.data.decode import decode, is_picture
from resfit.errors import DataError


def stack_images(images: Sequence[Any], names: Sequence[str] | None = None) -> np.ndarray:
    """Stack images of one size into one array.

    Args:
      images: arrays (height, width) or (height, width, channels), or PIL images, which become RGB or stay gray.
      names: the name of each image for error messages, such as its path; by default its number in the batch.

    Returns:
      (batch, height, width, channels) of the images' dtype; a gray image has one channel.

    Raises:
      DataError: if an entry is not an image, or the images differ in size, channels or dtype.

    Example:
      >>> stack_images([np.zeros((4, 4), np.uint8), np.ones((4, 4, 1), np.uint8)]).shape
      (2, 4, 4, 1)
    """
    arrays = [decode(image, None) if is_picture(image) else np.asarray(image) for image in images]
    arrays = [array[..., None] if array.ndim == 2 else array for array in arrays]

    def name(i: int) -> str:
        return f"image {i} of the batch" if names is None else names[i]

    for i, array in enumerate(arrays):
        if array.ndim != 3 or array.dtype.kind not in "uif":
            raise DataError(
                f"{name(i)} has shape {array.shape} and dtype {array.dtype}. Expected an image: numbers of shape "
                "(height, width) or (height, width, channels)."
            )
        if (array.shape, array.dtype) != (arrays[0].shape, arrays[0].dtype):
            raise DataError(
                f"{name(0)} has shape {arrays[0].shape} and dtype {arrays[0].dtype}, {name(i)} has {array.shape} and "
                f"{array.dtype}. Expected images of one shape and dtype in a batch. Pass size=n or "
                "size=(height, width) to resize them, and mode='RGB' or 'L' if some are gray and some in color."
            )
    return np.stack(arrays)


def as_labels(labels: Sequence[Any], column: str) -> np.ndarray:
    """Return class numbers (batch,) int32, or soft labels (batch, classes) float32.

    Args:
      labels: one label per example.
      column: the origin of the labels, for error messages.

    Raises:
      DataError: if a label is missing or is text. For text, the message shows how to number the classes.
    """
    if missing := sum(label is None for label in labels):
        raise DataError(
            f"{column} has no label for {missing} of {len(labels)} examples. Expected a label for each. Remove these "
            "examples or label them."
        )
    try:
        array = np.asarray(labels)
    except ValueError as error:
        raise DataError(
            f"{column} holds rows of different lengths: {error}. Expected one number, or a row of as many numbers, for "
            "every example."
        ) from error
    if array.dtype.kind in "US" or array.dtype == object:
        names = sorted({str(label) for label in labels})
        mapping = {label: i for i, label in enumerate(names[:5])}
        raise DataError(
            f"{column} holds text, such as {names[:3]}. Expected class numbers. Map the names to numbers once for the "
            f"whole dataset, for example {mapping}{' and so on' if len(names) > 5 else ''}."
        )
    if array.dtype.kind in "iub":
        return array.astype(np.int32)
    return array.astype(np.float32) if array.ndim > 1 else array
