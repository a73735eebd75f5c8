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

_JAXS = jax.lax.conv_general_dilated

# Layers of flax that multiply by a kernel. A subclass keeps its dtype: its code may depend on it.
_MULTIPLYING = (nnx.Conv, nnx.ConvTranspose, nnx.Linear, nnx.LinearGeneral, nnx.Einsum, nnx.MultiHeadAttention)


def set_layer_options(
    module: nnx.Module, *, precision: str, axis: str | None, convolve: Callable[..., jax.Array] | None
) -> None:
    """Set the options of all layers inside a module.

    Args:
      module: changed.
      precision: "float32": every layer computes in the dtype it was built with; another: see `compute_in`.
      axis: the mapped axis over which BatchNorms take their statistics; None: they take those of the array they get.
      convolve: function for the convolutions that use JAX's own; None: they keep it.
    """
    for _, part in nnx.iter_modules(module):
        if isinstance(part, nnx.BatchNorm) and part.axis_name != axis:
            if part.axis_name is not None:
                set_class(part, _binding(type(part), part.axis_name, axis))
            part.axis_name = axis
        # A layer with a custom function keeps it.
        if convolve is not None and isinstance(part, nnx.Conv) and part.conv_general_dilated is _JAXS:
            part.conv_general_dilated = convolve
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
