"""The values of inputs and labels, checked before a device can change them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resfit.errors import DataError

_AT_ONCE = 1 << 22  # values


def check_values(x: Any, y: Any = None) -> None:
    """Raise if inputs hold NaN or infinite values, or if inputs or labels change when they go to a device.

    A device computes with 32 bits, unless JAX has 64 enabled. NaN labels are left to the losses, which know their
    meaning.

    Args:
      x: arrays (examples, ...) or a pytree of such.
      y: likewise, or None.

    Raises:
      DataError: naming the first example.
    """
    for name, tree, finite in (("x", x, True), ("y", y, False)):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            _check(name + jax.tree_util.keystr(path), leaf, finite)


def refuse_masked(name: str, value: Any) -> None:
    """Raise for a masked array with masked entries: NumPy would hand on the values behind the mask."""
    if np.ma.is_masked(value):
        raise DataError(
            f"{name} is a masked array, shape {value.shape}, with {np.count_nonzero(value.mask)} masked entries, whose "
            f"values would be trained on. Expected an array without a mask: {name}.filled(0), or leave these examples "
            "out."
        )


def _check(name: str, array: Any, finite: bool) -> None:
    refuse_masked(name, array)
    if isinstance(array, jax.Array) or not len(array) or not jnp.issubdtype(array.dtype, np.number):
        return  # what is on a device already was not changed on the way, and reading it would make the host wait
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return  # losses of one's own may read complex labels; complex inputs are refused elsewhere
    floating = jnp.issubdtype(array.dtype, jnp.floating)  # NumPy does not count bfloat16 and float8
    target = jax.dtypes.canonicalize_dtype(array.dtype)
    if target == array.dtype and not (floating and finite):
        return
    step = max(1, _AT_ONCE // max(1, array[0].size))  # a few megabytes at a time
    for first in range(0, len(array), step):
        part = array[first : first + step].reshape(min(step, len(array) - first), -1)
        good = np.isfinite(part) if floating else np.ones(part.shape, bool)
        if finite and not good.all():
            bad = np.flatnonzero(~good.all(axis=1))
            raise DataError(
                f"{name}[{first + bad[0]}] holds NaN or infinite values, as do {len(bad)} of the {len(part)} examples "
                "looked at. Expected finite images: leave these out, or np.nan_to_num them."
            )
        if target == array.dtype:
            continue
        limits = np.finfo(target) if floating else np.iinfo(target)
        outside = good & ((part < limits.min) | (part > limits.max))
        if outside.any():
            row, column = np.argwhere(outside)[0]
            raise DataError(
                f"{name}[{first + row}] holds {part[row, column]}, of dtype {array.dtype}, which {target} on the device"
                f" cannot hold. Expected values from {limits.min} to {limits.max}: scale them, number classes from 0, "
                "or enable 64 bits with jax.config.update('jax_enable_x64', True)."
            )
