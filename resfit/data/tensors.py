"""Tensors of PyTorch and TensorFlow as NumPy arrays, with the channels of images last."""

import functools
import logging
from typing import Any

import jax
import numpy as np

from resfit.errors import DataError

_log = logging.getLogger("resfit")

_TENSORS = {("torch", "Tensor"): "torch", ("tensorflow", "EagerTensor"): "tensorflow"}
_MOST_CHANNELS = 4  # of images that need not be square to be recognized


def library_of(value: Any) -> str | None:
    """Return "torch" or "tensorflow" for a tensor, else None. Class names decide, so neither library is imported."""
    for kind in type(value).__mro__:
        library = _TENSORS.get((kind.__module__.partition(".")[0], kind.__name__))
        if library is not None:
            return library
    return None


def without_tensors(x: Any, y: Any) -> tuple[Any, Any]:
    """Return inputs and labels with NumPy arrays in place of tensors, and images with the channels last.

    The shape of an image tensor determines its layout, see `is_channels_first`. Labels with four dimensions, such as
    the masks of a segmentation, have the layout of the inputs. NumPy and JAX arrays are not changed.

    Args:
      x: inputs, an array or a pytree of arrays.
      y: labels in the same form, or None.

    Raises:
      DataError: if the layout of a tensor is ambiguous.
    """
    if not any(library_of(leaf) for leaf in jax.tree.leaves((x, y))):
        return x, y
    layouts: list[bool] = []

    def image(path: Any, leaf: Any) -> Any:
        first = is_channels_first("x" + jax.tree_util.keystr(path), leaf)
        if first is not None:
            layouts.append(first)
        return _array(leaf, bool(first))

    def label(path: Any, leaf: Any) -> Any:
        follows = bool(layouts) and getattr(leaf, "ndim", 0) == 4
        first = any(layouts) if follows else is_channels_first("y" + jax.tree_util.keystr(path), leaf)
        return _array(leaf, bool(first))

    x = jax.tree_util.tree_map_with_path(image, x)
    return x, jax.tree_util.tree_map_with_path(label, y)


def is_channels_first(name: str, value: Any) -> bool | None:
    """Return True if a tensor is (batch, channels, height, width), and None if it is not a tensor of images.

    Height and width are larger than four and than the number of channels, and images of more than four channels are
    square. TensorFlow's images have the channels last unless they are square and the second axis has 1, 3 or 4 entries.

    Args:
      name: the name of the tensor, for the error.
      value: any leaf of inputs or labels.

    Raises:
      DataError: if a PyTorch tensor can have either layout.
    """
    library = library_of(value)
    if library is None or value.ndim < 4:
        return None
    shape = tuple(map(int, value.shape))
    if library == "tensorflow":
        return len(shape) == 4 and shape[1] in (1, 3, 4) and shape[2] == shape[3] and _is_image(*shape[1:])
    if len(shape) == 4:
        _, a, b, c = shape
        first, last = _is_image(a, b, c), _is_image(c, a, b)
        if first is not last:
            _note(name, shape[1:], first)
            return first
    if len(shape) > 4:
        raise DataError(
            f"{name} is a PyTorch tensor of {len(shape)} dimensions, shape {shape}. Expected a batch of images with 4. "
            "If a Dataset yields batches, pass DataLoader(dataset, batch_size=None). For other data, pass NumPy "
            f"arrays, whose channels are last: {name}.movedim(1, -1).numpy() if the channels are second."
        )
    raise DataError(
        f"{name} is a PyTorch tensor of shape {shape}, whose channels may be first or last. Expected (batch, channels, "
        "height, width) or (batch, height, width, channels) with at most 4 channels, or square images with more. Pass "
        f"NumPy arrays, whose channels are last: {name}.movedim(1, -1).numpy() if the channels are first, else "
        f"{name}.numpy(). In a DataLoader, convert in collate_fn."
    )


def _is_image(channels: int, height: int, width: int) -> bool:
    """Return True if these can be the axes of an image."""
    known = channels <= _MOST_CHANNELS or height == width
    return known and min(height, width) > max(channels, _MOST_CHANNELS)


@functools.cache
def _note(name: str, shape: tuple[int, ...], first: bool) -> None:
    if first:
        _log.info(
            "%s: tensors of shape (batch, %s) have the channels first; they are moved last.",
            name,
            ", ".join(map(str, shape)),
        )


def _array(leaf: Any, channels_first: bool) -> Any:
    library = library_of(leaf)
    if library is None:
        return leaf
    if library == "torch":
        leaf = leaf.detach().cpu()
        if "bfloat16" in str(leaf.dtype) or "float8" in str(leaf.dtype):  # dtypes that NumPy does not have
            leaf = leaf.float()
        array = leaf.numpy()
    else:
        array = np.asarray(leaf)
    # Several times as fast as copying a transposed view.
    return np.stack(np.moveaxis(array, 1, 0), axis=-1) if channels_first else array
