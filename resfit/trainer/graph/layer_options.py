"""Options of flax's layers that a step sets: dtype, convolution function, axis of BatchNorm statistics.

Flax reads these options from attributes, so a step sets attributes of its copy and wraps no call.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from resfit.nets.intercept import set_class, wrapping
from resfit.nets.norm import BatchNorm

Normalize = Callable[..., tuple[jax.Array, jax.Array, jax.Array] | None]

_JAXS = jax.lax.conv_general_dilated

# Layers of flax that multiply by a kernel. A subclass keeps its dtype: its code may depend on it.
_MULTIPLYING = (nnx.Conv, nnx.ConvTranspose, nnx.Linear, nnx.LinearGeneral, nnx.Einsum, nnx.MultiHeadAttention)


def set_layer_options(
    module: nnx.Module,
    *,
    precision: str,
    axis: str | None,
    convolve: Callable[..., jax.Array] | None,
    normalize: Normalize | None,
) -> None:
    """Set the options of all layers inside a module.

    Args:
      module: changed.
      precision: "float32": every layer computes in the dtype it was built with; another: see `compute_in`.
      axis: the mapped axis over which BatchNorms take their statistics; None: they take those of the array they get.
      convolve: function for the convolutions that use JAX's own; None: they keep it.
      normalize: function for BatchNorms in training, see `nets.norm.BatchNorm`; None: they keep their own arithmetic.
    """
    for _, part in nnx.iter_modules(module):
        if isinstance(part, nnx.BatchNorm) and part.axis_name != axis:
            if part.axis_name is not None:
                set_class(part, _binding(type(part), part.axis_name, axis))
            part.axis_name = axis
        # A layer with a custom function keeps it.
        if convolve is not None and isinstance(part, nnx.Conv) and part.conv_general_dilated is _JAXS:
            part.conv_general_dilated = convolve
        if normalize is not None and type(part) is nnx.BatchNorm:
            set_class(part, _normalizing(normalize))
        elif normalize is not None and isinstance(part, BatchNorm):
            part.normalize = normalize
    if precision != "float32":
        compute_in(module, precision)


@functools.cache
def _binding(cls: type, own: Any, axis: str | None) -> type:
    """Return a subclass of a norm that also takes its statistics over an axis of the user's, if a call binds the axis.

    A nnx.vmap or shard_map inside the module binds it; a loop with pmap around the module does not exist here.
    """

    def around(part: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            jax.lax.axis_index(own)
        except NameError:  # not bound
            return call(*args, **kwargs)
        part.axis_name = own if axis is None else (axis, own)
        try:
            return call(*args, **kwargs)
        finally:
            part.axis_name = axis

    return wrapping(cls, around)


@functools.cache
def _normalizing(normalize: Normalize) -> type:
    """Return a subclass of flax's BatchNorm that normalizes by a function in training."""

    def around(
        part: Any, call: Callable[..., Any], x: Any, use_running_average: bool | None = None, *, mask: Any = None
    ) -> Any:
        evaluating = part.use_running_average if use_running_average is None else use_running_average
        found = None
        if evaluating is False and mask is None and _in_float32(part, x):
            found = normalize(x, part.scale[...], part.bias[...], epsilon=part.epsilon)
        if found is None:
            return call(x, use_running_average, mask=mask)
        y, *batch = found
        for statistic, new in zip((part.mean, part.var), batch, strict=True):
            moved = part.momentum * statistic[...] + (1 - part.momentum) * new
            statistic.set_value(jax.lax.stop_gradient(moved))
        return y

    return wrapping(nnx.BatchNorm, around)


def _in_float32(part: Any, x: Any) -> bool:
    """Return True if a BatchNorm of flax computes over the last axis, with scale and bias, in float32 only."""
    arrays = (x, part.scale, part.bias, part.mean, part.var)
    return (
        part.axis in (-1, x.ndim - 1)
        and part.axis_name is None
        and part.use_fast_variance
        and part.dtype in (None, jnp.float32)
        and all(array is not None and array.dtype == jnp.float32 for array in arrays)
    )


def compute_in(module: nnx.Module, precision: str) -> None:
    """Make the layers that multiply by kernels compute in another dtype. Parameters and statistics keep theirs.

    Norms still compute in float32. Norms with an `output_dtype`, such as resfit's, return the other dtype.

    Args:
      module: changed.
      precision: such as "bfloat16".
    """
    parts: list[Any] = [part for _, part in nnx.iter_modules(module)]
    for part in parts:
        if type(part) in _MULTIPLYING:
            part.dtype = jnp.dtype(precision)
        elif hasattr(part, "output_dtype"):
            part.output_dtype = precision
