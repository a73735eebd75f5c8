"""The inputs of exported models: their checks, and batches of a fixed size."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resfit.errors import DataError, InputShapeError


class Expected(NamedTuple):
    """Shape and dtype of an input, with None for a batch size that can vary; `jax.ShapeDtypeStruct` refuses None."""

    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


def converted(x: Any, expected: Any) -> Any:
    """Return an array in the dtype of a program.

    Args:
      x: an array (batch, ...).
      expected: shape and dtype of the program's argument; its batch size is not read.

    Raises:
      InputShapeError: for another shape of the rows.
      DataError: for a dtype of another kind.
    """
    x = x if isinstance(x, jax.Array) else np.asarray(x)
    shape = ("batch", *expected.shape[1:])
    if x.ndim != len(shape) or x.shape[1:] != shape[1:]:
        missing_batch = " Add the batch axis: x[None]." if x.shape == shape[1:] else ""
        raise InputShapeError(
            f"Got inputs of shape {x.shape}. Expected ({', '.join(map(str, shape))}), for which the model was exported."
            f"{missing_batch} Resize the images, or export the model again with another input_shape."
        )
    for kind in (jnp.floating, jnp.signedinteger):  # cast to the narrower dtype, as JAX does
        if jnp.issubdtype(x.dtype, kind) and jnp.issubdtype(expected.dtype, kind):
            return x.astype(expected.dtype)
    if x.dtype != expected.dtype:
        raise DataError(
            f"Got inputs of dtype {x.dtype}. Expected {expected.dtype}: the exported preprocessing depends on it. Pass "
            f"{expected.dtype} in the range of the training data, or export the model again with "
            f"input_dtype={str(x.dtype)!r}."
        )
    return x


def filled_up(rows: Any, size: int) -> Any:
    """Return the rows of a batch, followed by zeros up to a batch size."""
    if len(rows) == size:
        return rows
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])
