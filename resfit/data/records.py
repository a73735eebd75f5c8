"""Single images and labels, as decoders and data sets give them, stacked into batches."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from resfit.data.decode import decode, is_picture
from resfit.errors import DataError


def stack_images(images: Sequence[Any], names: Sequence[str] | None = None) -> np.ndarray:
    """Images of one size as one array.

    Args:
      images: arrays (height, width) or (height, width, channels), or PIL images, which become RGB or stay grey.
      names: what to call each of them in an error, such as its path; by default its place in the batch.

    Returns:
      (batch, height, width, channels), of the images' own dtype; a grey image has one channel.

    Raises:
      DataError: if an image is none, or they differ in size, channels or dtype.

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
                f"{array.dtype}. Expected images of one size and kind in a batch: pass size=(height, width), or size=n "
                "for squares, to resize them, and mode='RGB' or 'L' where some are grey and some in colour."
            )
    return np.stack(arrays)


def as_labels(labels: Sequence[Any], column: str) -> np.ndarray:
    """Class numbers (batch,) int32, or soft labels (batch, classes) float32.

    Args:
      labels: one for each example.
      column: where they come from, for errors.

    Raises:
      DataError: if a label is missing, or text: the message shows how to number the classes.
    """
    if any(label is None for label in labels):
        raise DataError(
            f"{column} has no label for {sum(label is None for label in labels)} of {len(labels)} examples."
        )
    array = np.asarray(labels)
    if array.dtype.kind in "US" or array.dtype == object:
        names = sorted({str(label) for label in labels})
        mapping = {label: i for i, label in enumerate(names[:5])}
        raise DataError(
            f"{column} holds text, such as {names[:3]}. Expected class numbers: map the names, for example "
            f"{mapping}{' and so on' if len(names) > 5 else ''}, once for the whole data set."
        )
    if array.dtype.kind in "iub":
        return array.astype(np.int32)
    return array.astype(np.float32) if array.ndim > 1 else array
