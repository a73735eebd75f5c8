"""Dense predictions: a label for every pixel. The loss of an example is the mean over its pixels.

Outputs are (batch, ..., channels), with any number of axes of pixels between the first and the last. A pixel is a row
of `losses.task`, so every loss of rows is a loss of pixels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resfit._utils.checks import is_int
from resfit.errors import CompileError, LabelError

_AT_ONCE = 1 << 22  # labels


class PixelRows(NamedTuple):
    """The pixels of a batch as rows.

    Attributes:
      logits: (batch * pixels, channels).
      labels: (batch * pixels,) or (batch * pixels, channels).
      valid: (batch * pixels,) booleans, False for pixels without a label; None if all pixels have one.
    """

    logits: jax.Array
    labels: jax.Array
    valid: jax.Array | None


def is_dense(outputs: Any) -> bool:
    """Return True for outputs with axes between the batch and the channels.

    Example:
      >>> is_dense(jnp.zeros((2, 8, 8, 3))), is_dense(jnp.zeros((2, 3)))
      (True, False)
    """
    return getattr(outputs, "ndim", 0) > 2


def fits(outputs: Any, labels: Any) -> bool:
    """Return True if labels have one entry, or one row of targets, for each pixel of dense outputs."""
    if not is_dense(outputs) or not hasattr(labels, "shape"):
        return False
    return labels.shape in (outputs.shape[:-1], (*outputs.shape[:-1], 1), outputs.shape)


def pixel_rows(outputs: Any, labels: Any, ignore_index: int | None = None) -> PixelRows:
    """Return the pixels of dense outputs as rows.

    Args:
      outputs: (batch, ..., channels).
      labels: (batch, ...) or (batch, ..., 1) class numbers, or 0 and 1 for a single channel; or targets in the shape of
        the outputs.
      ignore_index: the label of pixels without a class, which becomes 0; None if there are none.

    Raises:
      LabelError: if the sizes differ, and for labels that could be masks or targets.
    """
    _check_shapes(outputs, labels)
    channels = outputs.shape[-1]
    targets = labels.shape == outputs.shape and channels > 1
    if targets and ignore_index is not None:
        raise LabelError(
            f"The loss got ignore_index={ignore_index} and targets of shape {labels.shape}. Expected class numbers, "
            f"{outputs.shape[:-1]}, in which {ignore_index} marks pixels without a class. For targets pass a "
            "sample_weight for each pixel, 0 for those to ignore."
        )
    labels = labels.reshape(-1, channels) if targets else labels.reshape(-1)
    valid = None
    if ignore_index is not None:
        # In 32 bits: 255 and -1 are no values of every integer dtype.
        integer = jnp.issubdtype(labels.dtype, jnp.integer)
        valid = labels.astype(jnp.int32 if integer else jnp.float32) != ignore_index
        labels = jnp.where(valid, labels, jnp.zeros((), labels.dtype))
    return PixelRows(outputs.reshape(-1, channels), labels, valid)


def over_pixels(
    loss: Callable[[Any, Any], jax.Array],
    outputs: Any,
    labels: Any,
    ignore_index: int | None = None,
    weight: jax.Array | None = None,
) -> jax.Array:
    """Return the loss of each example, (batch,): for dense outputs, the mean over the pixels that have a label.

    The result is the sum of weight * loss over these pixels, divided by their number, and 0 for an example without any.

    Args:
      loss: a function of rows (outputs, labels) -> (rows,).
      outputs: (batch, outputs), or dense, (batch, ..., channels).
      labels: those of `loss`, or one for each pixel.
      ignore_index: the label of pixels without a class; only for dense outputs.
      weight: the weight of each pixel, (batch, ...), or None.

    Raises:
      LabelError: if labels or weights do not fit the outputs.
    """
    if not is_dense(outputs):
        _check_rows(outputs, ignore_index, weight)
        return loss(outputs, labels)
    rows = pixel_rows(outputs, labels, ignore_index)
    batch = outputs.shape[0]
    each = loss(rows.logits, rows.labels).reshape(batch, -1)
    if weight is not None:
        if weight.shape not in (outputs.shape[:-1], (*outputs.shape[:-1], 1)):
            raise LabelError(
                f"Got weights of shape {weight.shape} and outputs of shape {outputs.shape}. Expected one sample_weight "
                f"for each example, ({batch},), or for each pixel of the outputs, {outputs.shape[:-1]}."
            )
        each = each * weight.reshape(batch, -1)
    if rows.valid is None:
        return each.mean(axis=1)
    valid = rows.valid.reshape(batch, -1)
    return jnp.where(valid, each, 0).sum(axis=1) / jnp.maximum(valid.sum(axis=1), 1)


class RowLoss:
    """The base of losses with options, dataclasses, which read rows, or pixels as rows.

    Attributes:
      ignore_index: the label of pixels without a class, such as 255; None if every pixel has one.
    """

    ignore_index: int | None

    def __post_init__(self) -> None:
        if self.ignore_index is not None and not is_int(self.ignore_index):
            raise CompileError(
                f"{type(self).__name__} got ignore_index={self.ignore_index!r}. Expected the label of pixels without a "
                "class, such as 255, or None."
            )

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the loss of each example, (batch,) float32; see `over_pixels` for labels of pixels."""
        return over_pixels(self.of_rows, logits, labels, self.ignore_index)

    def of_rows(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the loss, (rows,) float32, of logits and labels of `losses.task`."""
        raise NotImplementedError(f"{type(self).__name__} must override `of_rows`.")

    def __repr__(self) -> str:
        # Checkpoints compare this text: without ignore_index it is the text of versions that had none.
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        index = values.pop("ignore_index")
        values |= {} if index is None else {"ignore_index": index}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def representatives(labels: np.ndarray, outputs_shape: tuple[int, ...], ignore_index: int | None) -> np.ndarray:
    """Return labels of rows that are valid if and only if these labels of pixels are; runs on the host.

    Args:
      labels: of pixels, all of them or those of one batch.
      outputs_shape: the shape of one batch of dense outputs.
      ignore_index: the label of pixels without a class, or None.

    Returns:
      The smallest and largest labels, in parts, without those of ignored pixels; or all rows of targets.
    """
    if labels.ndim == len(outputs_shape) and labels.shape[-1] == outputs_shape[-1] > 1:
        return labels.reshape(-1, outputs_shape[-1])
    found = []
    step = max(1, _AT_ONCE // max(1, labels[:1].size))  # masked copies of a few megabytes
    for first in range(0, len(labels), step):
        part = labels[first : first + step]
        part = part if ignore_index is None else part[part != ignore_index]
        found += [part.min(), part.max()] if part.size else []
    return np.array(found, labels.dtype)


def _check_rows(outputs: Any, ignore_index: int | None, weight: Any) -> None:
    got = f"outputs of shape {getattr(outputs, 'shape', None)}"
    if ignore_index is not None:
        raise LabelError(
            f"The loss got ignore_index={ignore_index} and {got}. Expected outputs for each pixel, (batch, height, "
            "width, channels). Remove examples without a class, or give them sample_weight 0 and label 0."
        )
    if weight is not None:
        raise LabelError(
            f"Got weights of shape {weight.shape} and {got}. Expected one sample_weight for each example, (batch,). "
            "Weights of pixels need outputs (batch, height, width, channels)."
        )


def _check_shapes(outputs: Any, labels: Any) -> None:
    got = f"logits of shape {outputs.shape} and labels of shape {getattr(labels, 'shape', None)}"
    if not hasattr(labels, "shape"):
        raise LabelError(f"Expected one array of labels, (batch, ...), got {type(labels).__name__}.")
    got += f", {labels.dtype}"
    if not fits(outputs, labels):
        size, needed = outputs.shape[1:-1], labels.shape[1 : outputs.ndim - 1]
        if labels.ndim < outputs.ndim - 1 or outputs.shape[0] != labels.shape[0]:
            raise LabelError(
                f"Got {got}. Expected logits (batch, classes) and labels (batch,) of class numbers or (batch, classes) "
                "of targets. A network without global pooling and a dense layer at its end returns other shapes."
            )
        if size == needed:
            raise LabelError(
                f"Got {got}. Expected one class number for each pixel, {outputs.shape[:-1]}, or one target for each "
                f"channel, {outputs.shape}."
            )
        raise LabelError(
            f"Got {got}: {_by(size)} pixels of outputs and {_by(needed)} labels. Expected one label for each pixel. "
            f"Resize the outputs at the end of the network: jax.image.resize(outputs, (len(x), "
            f"{', '.join(map(str, needed))}, {outputs.shape[-1]}), 'linear')."
        )
    integer = jnp.issubdtype(labels.dtype, jnp.integer) or labels.dtype == bool
    if outputs.ndim == 3 and labels.shape == outputs.shape and outputs.shape[-1] > 1 and integer:
        raise LabelError(
            f"Got {got}, which could be masks, or targets of {outputs.shape[-1]} classes. For binary masks return "
            f"{(*outputs.shape, 1)} from the network; for targets pass floats."
        )


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
