"""Batch normalization in training, with the operations after it, as JAX primitives that native code computes.

Three primitives are closed under differentiation: `forward`; `tangent`, its derivative, which is linear; and
`backward`, the transpose of `tangent`. Native code (norm.c) computes the first and the last on a CPU. XLA computes
everything else from the definitions in this module: other platforms, `jax.vmap`, forward-mode and higher derivatives.
"""

import functools
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from resfit.backends.onednn import norm_library
from resfit.backends.onednn.convolution import typed_by_mesh

DTYPES = ("float32", "bfloat16")
PLAIN, RELU, ADD_RELU = 0, 1, 2  # the operations after the normalization, as in norm.c
LANES, BLOCK, CHUNK = 16, 64, 65536  # as in norm.c
MOST_FLOAT32 = 64  # channels in float32 up to which native code is used: with more, XLA's is as fast
LEAST = 65536  # elements of an array from which native code is used: smaller layers take 0.2 ms or less with XLA


@dataclass(frozen=True)
class Normalize:
    """A batch normalization by the statistics of the batch, if native code is expected to be faster than XLA's.

    Args:
      always: True to use native code also if XLA is faster, for tests and measurements.

    Example:
      >>> x, ones = jnp.ones((4, 2, 2, 16)), jnp.ones(16)
      >>> y, mean, var = Normalize(always=True)(x, ones, ones, epsilon=1e-5)
      >>> y.shape, mean.shape
      ((4, 2, 2, 16), (16,))
    """

    always: bool = False

    def __call__(
        self, x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array] | None:
        """Return the normalized array, and mean and biased variance of each channel; None if XLA has to compute them.

        Args:
          x: (..., channels), float32 or bfloat16.
          scale: (channels,) float32.
          bias: (channels,) float32.
          epsilon: added to the variance; a number, because native code takes no array for it.
        """
        # One value for each channel has no unbiased variance, which resfit's BatchNorm reports.
        several = x.ndim > 1 and x.size > x.shape[-1]
        rows_fit = several and x.shape[-1:] == scale.shape == bias.shape and x.shape[-1] % LANES == 0
        dtypes_fit = str(x.dtype) in DTYPES and scale.dtype == bias.dtype == jnp.float32
        epsilon_fits = isinstance(epsilon, numbers.Real)
        faster = self.always or _wins(x)
        if not (rows_fit and dtypes_fit and epsilon_fits and faster) or any(map(typed_by_mesh, (x, scale, bias))):
            return None
        y, mean, var = forward_p.bind(x, scale, bias, epsilon=float(epsilon), operations=PLAIN)
        return y, mean, var


def _wins(x: jax.Array) -> bool:
    """Return True if native code is expected to be faster than XLA, by the sizes only, as for convolutions."""
    return x.size >= LEAST and (x.dtype != jnp.float32 or x.shape[-1] <= MOST_FLOAT32)


# --- the definitions, computed by XLA ---------------------------------------------------------------------------------


def _normalized(x: Any, scale: Any, bias: Any, *, epsilon: float) -> tuple[Any, Any, Any]:
    """Return the normalized array in float32, mean and variance."""
    wide = x.astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(wide, axes)
    var = jnp.maximum(jnp.mean(jnp.square(wide), axes) - jnp.square(mean), 0.0)
    gain = lax.rsqrt(var + epsilon) * scale
    gains, shifts = (jnp.expand_dims(row, axes) for row in (gain, bias - mean * gain))
    return wide * gains + shifts, mean, var


def _forward(x: Any, *others: Any, epsilon: float, operations: int) -> tuple[Any, Any, Any]:
    *added, scale, bias = others
    y, mean, var = _normalized(x, scale, bias, epsilon=epsilon)
    for other in added:
        y = y + other.astype(jnp.float32)
    return (y if operations == PLAIN else jnp.maximum(y, 0.0)).astype(x.dtype), mean, var


def _mask(g: Any, x: Any, y: Any, scale: Any, bias: Any, *, epsilon: float, operations: int) -> Any:
    """Return a cotangent or tangent after ReLU, in float32."""
    wide = g.astype(jnp.float32)
    if operations == PLAIN:
        return wide
    y = y[0] if operations == ADD_RELU else _normalized(x, scale, bias, epsilon=epsilon)[0]
    return jnp.where(y > 0, wide, 0.0)


def _tangent(*arguments: Any, epsilon: float, operations: int) -> tuple[Any, Any, Any]:
    """Return the tangents of y, mean and variance.

    Args:
      *arguments: tangents of x, [what is added], scale and bias; then x, [y], scale, bias, mean and variance.
      epsilon: added to the variance.
      operations: after the normalization.
    """
    half = len(arguments) // 2 - 1
    (tx, *added, tscale, tbias), (x, *y, scale, bias, _, _) = arguments[:half], arguments[half:]
    plain = functools.partial(_normalized, epsilon=epsilon)
    ty, tmean, tvar = jax.jvp(plain, (x, scale, bias), (tx, tscale, tbias))[1]
    for other in added:
        ty = ty + other.astype(jnp.float32)
    return _mask(ty, x, y, scale, bias, epsilon=epsilon, operations=operations).astype(x.dtype), tmean, tvar


def _backward(x: Any, g: Any, *others: Any, epsilon: float, operations: int) -> tuple[Any, ...]:
    """Return the cotangents of x, [what is added], scale and bias."""
    *y, scale, bias, _, _, of_mean, of_var = others
    plain = functools.partial(_normalized, epsilon=epsilon)
    masked = _mask(g, x, y, scale, bias, epsilon=epsilon, operations=operations)
    of_x, of_scale, of_bias = jax.vjp(plain, x, scale, bias)[1]((masked, of_mean, of_var))
    return of_x, *(masked.astype(x.dtype) for _ in y), of_scale, of_bias


# --- by native code ---------------------------------------------------------------------------------------------------


def _scratch(x: Any) -> jax.ShapeDtypeStruct:
    """Return the type of the scratch memory of a call: four rows, and two sums in each task, see `check` in norm.c."""
    channels, pixels = x.shape[-1], x.size // x.shape[-1]
    in_row = BLOCK // channels if channels <= BLOCK and BLOCK % channels == 0 else 1
    in_row = in_row if pixels % in_row == 0 else 1
    width, rows = channels * in_row, pixels // in_row
    tasks = -(-rows // max(CHUNK // width, 1))
    return jax.ShapeDtypeStruct(((tasks * 2 + 4) * width,), jnp.float32)


def _native(target: str, definition: Callable[..., Any]) -> Callable[..., Any]:
    def execute(*arguments: Any, epsilon: float, operations: int) -> Any:
        if not norm_library.available():
            return definition(*arguments, epsilon=epsilon, operations=operations)
        how = {"epsilon": epsilon, "operations": operations}
        results = jax.eval_shape(functools.partial(definition, **how), *arguments)
        call = jax.ffi.ffi_call(target, (*results, _scratch(arguments[0])))
        return call(*arguments, epsilon=np.float32(epsilon), operations=np.int32(operations))[:-1]

    return execute


# --- as primitives ----------------------------------------------------------------------------------------------------


def _primitive(name: str, definition: Callable[..., Any], native: str | None) -> Primitive:
    primitive = Primitive(f"batch norm, {name}")
    primitive.multiple_results = True

    def abstract(*arguments: Any, **how: Any) -> Any:
        types = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in arguments]
        results = jax.eval_shape(functools.partial(definition, **how), *types)
        return [jax.core.ShapedArray(result.shape, result.dtype) for result in results]

    def batched(arguments: Any, axes: Any, **how: Any) -> Any:
        results = jax.vmap(functools.partial(definition, **how), in_axes=tuple(axes))(*arguments)
        return results, (0,) * len(results)

    def compiled(*arguments: Any, **how: Any) -> Any:
        with jax.disable_jit(False):  # it would call this function again
            return _jitted(primitive)(*arguments, **how)

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(compiled)
    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, mlir.lower_fun(definition, multiple_results=True))
    if native is not None:
        lowered = mlir.lower_fun(_native(native, definition), multiple_results=True)
        mlir.register_lowering(primitive, lowered, platform="cpu")
    return primitive


@functools.cache
def _jitted(primitive: Primitive) -> Callable[..., Any]:
    return jax.jit(primitive.bind, static_argnames=("epsilon", "operations"))


forward_p = _primitive("forward", _forward, norm_library.FORWARD)
_tangent_p = _primitive("tangent", _tangent, None)
_backward_p = _primitive("backward", _backward, norm_library.BACKWARD)


def _differentiated(primals: Any, tangents: Any, **how: Any) -> Any:
    y, mean, var = forward_p.bind(*primals, **how)
    x, *added, scale, bias = primals
    known = (x, *(y for _ in added), scale, bias, mean, var)
    given = (ad.instantiate_zeros(tangent) for tangent in tangents)
    return (y, mean, var), _tangent_p.bind(*given, *known, **how)


def _transposed(cotangents: Any, *arguments: Any, **how: Any) -> Any:
    half = len(arguments) // 2 - 1
    x, *others = arguments[half:]
    g, of_mean, of_var = (ad.instantiate_zeros(cotangent) for cotangent in cotangents)
    found = _backward_p.bind(x, g, *others, of_mean, of_var, **how)
    linear = [result if ad.is_undefined_primal(a) else None for a, result in zip(arguments, found, strict=False)]
    return linear + [None] * (len(arguments) - half)


def _by_definition(definition: Callable[..., Any]) -> Callable[..., Any]:
    def differentiated(primals: Any, tangents: Any, **how: Any) -> Any:
        given = tuple(ad.instantiate_zeros(tangent) for tangent in tangents)
        return jax.jvp(functools.partial(definition, **how), tuple(primals), given)

    return differentiated


ad.primitive_jvps[forward_p] = _differentiated
ad.primitive_jvps[_tangent_p] = _by_definition(_tangent)
ad.primitive_jvps[_backward_p] = _by_definition(_backward)
ad.primitive_transposes[_tangent_p] = _transposed
