"""Checks of input and label values, before a device converts them to 32 bits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resfit.errors import DataError

_AT_ONCE = 1 << 22  # values


def check_values(x: Any, y: Any = None, numbers: np.ndarray | None = None) -> None:
    """Raise if inputs have NaN or infinite values, or if conversion to the device's dtype changes inputs or labels.

    A device computes with 32 bits unless JAX enables 64. NaN labels are accepted, because a loss can give them a
    meaning.

    Args:
      x: arrays (examples, ...) or a pytree of such arrays.
      y: labels in the same form, or None.
      numbers: (examples,) the numbers of the examples in their dataset, for the message; by default from 0.

    Raises:
      DataError: if a check fails; the message names the first example.
    """
    for name, tree, finite in (("x", x, True), ("y", y, False)):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            place = name + jax.tree_util.keystr(path)
            refuse_masked(place, leaf)
            if _has_values_to_check(leaf, finite) and len(leaf):
                _check(place, leaf, finite, np.arange(len(leaf)) if numbers is None else numbers)


def has_values_to_check(x: Any, y: Any = None) -> bool:
    """Return True if `check_values` reads values of these arrays, and not only their dtypes."""
    inputs, labels = jax.tree.leaves(x), jax.tree.leaves(y)
    return any(_has_values_to_check(leaf, finite=True) for leaf in inputs) or any(
        _has_values_to_check(leaf, finite=False) for leaf in labels
    )


def _has_values_to_check(array: Any, finite: bool) -> bool:
    if isinstance(array, jax.Array) or not jnp.issubdtype(array.dtype, np.number):
        return False  # an array on a device has its final dtype, and reading it would block the host
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return False  # custom losses may read complex labels; complex inputs raise elsewhere
    floating = jnp.issubdtype(array.dtype, jnp.floating)  # np.floating excludes bfloat16 and float8
    return bool(floating and finite) or jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype


def refuse_masked(name: str, value: Any) -> None:
    """Raise for a masked array with masked entries, because NumPy would pass on the values behind the mask."""
    if np.ma.is_masked(value):
        raise DataError(
            f"{name} is a masked array of shape {value.shape} with {np.count_nonzero(value.mask)} masked entries. "
            f"Expected an array without a mask: training would use the masked values. Pass {name}.filled(0), or remove "
            "these examples."
        )


def is_sparse(value: Any) -> bool:
    """Return True for a sparse array of SciPy, JAX, PyTorch or TensorFlow, and a ragged one of TensorFlow."""
    return (
        hasattr(value, "todense")
        or any(getattr(value, name, None) is True for name in ("is_sparse", "is_sparse_csr"))
        or _tensorflow_kind(value) is not None
    )


def refuse_sparse(name: str, value: Any) -> None:
    """Raise for a sparse or ragged array: the caller makes the dense one that a module needs, and sees its size."""
    if not is_sparse(value):
        return
    kind, remedy = _TENSORFLOW.get(_tensorflow_kind(value) or "", ("sparse", None))
    if remedy is None:
        dense = next(method for method in ("toarray", "todense", "to_dense") if hasattr(value, method))
        remedy = f"{{name}}.{dense}()"
    raise DataError(
        f"{name} is a {kind} {type(value).__name__} of shape {tuple(value.shape)}. Expected a dense array. Pass "
        f"{remedy.format(name=name)}."
    )


# Class -> (the word for its arrays, how to make a dense one).
_TENSORFLOW = {
    "SparseTensor": ("sparse", "tf.sparse.to_dense({name})"),
    "RaggedTensor": ("ragged", "{name}.to_tensor()"),
}


def _tensorflow_kind(value: Any) -> str | None:
    """Return the name of the class in `_TENSORFLOW`, by name, so that TensorFlow is not imported."""
    names = (kind.__name__ for kind in type(value).__mro__ if kind.__module__.partition(".")[0] == "tensorflow")
    return next((name for name in names if name in _TENSORFLOW), None)


def is_one_hot(y: np.ndarray) -> bool:
    """Return True if every row along the last axis has a 1 at one place and 0 elsewhere.

    Example:
      >>> is_one_hot(np.eye(3)), is_one_hot(np.array([[0, 2, 1]]))
      (True, False)
    """
    return bool(((y == 0) | (y == 1)).all() and (y.sum(axis=-1, dtype=np.int64) == 1).all())


def _check(name: str, array: Any, finite: bool, numbers: np.ndarray) -> None:
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    target = jax.dtypes.canonicalize_dtype(array.dtype)
    step = max(1, _AT_ONCE // max(1, array[0].size))  # a few megabytes at a time
    for first in range(0, len(array), step):
        part = array[first : first + step].reshape(min(step, len(array) - first), -1)
        good = np.isfinite(part) if floating else np.ones(part.shape, bool)
        if finite and not good.all():
            raise _not_finite(name, numbers[first:], good)
        if target != array.dtype:
            _check_range(name, numbers[first:], part, good, target)


def _not_finite(name: str, numbers: np.ndarray, good: np.ndarray) -> DataError:
    bad = np.flatnonzero(~good.all(axis=1))
    return DataError(
        f"{name}[{numbers[bad[0]]}] holds NaN or infinite values, as do {len(bad)} of the {len(good)} examples "
        "checked. Expected finite images. Remove these examples, or replace the values with np.nan_to_num."
    )


def _check_range(name: str, numbers: np.ndarray, part: np.ndarray, good: np.ndarray, target: Any) -> None:
    limits = np.finfo(target) if jnp.issubdtype(target, jnp.floating) else np.iinfo(target)
    outside = good & ((part < limits.min) | (part > limits.max))
    if not outside.any():
        return
    row, column = np.argwhere(outside)[0]
    raise DataError(
        f"{name}[{numbers[row]}] holds {part[row, column]}, of dtype {part.dtype}, which {target} on the device cannot "
        f"hold. Expected values from {limits.min} to {limits.max}. Scale the values, number classes from 0, or enable "
        "64 bits with jax.config.update('jax_enable_x64', True)."
    )
