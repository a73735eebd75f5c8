"""Convolutions in JAX that oneDNN executes, with derivatives of any order. XLA computes those that oneDNN cannot.

A convolution and its two gradients are three functions. Each is linear in both of its arguments, and its derivatives
are the other two. So the three primitives `forward`, `data gradient` and `weight gradient` are closed under forward and
reverse differentiation. The lowering for a CPU chooses oneDNN or XLA by the sizes only (`selection.py`). The choice is
the same in every process, so that a run resumes bit for bit.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import Mesh, PartitionSpec

from resfit.backends.onednn.bridge import TARGET, Bridge, connect
from resfit.backends.onednn.planning import DATA, DTYPES, FORWARD, WEIGHTS, Planned, Planner, Shape
from resfit.backends.onednn.selection import wins

_LAYOUT = ("NHWC", "HWIO", "NHWC")


class _Window(NamedTuple):
    """The movement of a kernel over images."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True)
class Convolve:
    """A replacement for `jax.lax.conv_general_dilated`, with its arguments, if oneDNN is available.

    oneDNN computes large two-dimensional convolutions of float32 and bfloat16 in the layout of `nnx.Conv`. XLA computes
    all others.

    Args:
      mesh: of one axis, if the compiler splits the batch over its devices: it cannot split a call of oneDNN, so the
        call is mapped over the mesh. None if every device runs a separate program.
      always: True to use oneDNN also if XLA is faster, for tests and measurements.

    Example:
      >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
      >>> Convolve()(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")).shape
      (1, 4, 4, 5)
    """

    mesh: Mesh | None = None
    always: bool = False

    def __call__(
        self,
        lhs: jax.Array,
        rhs: jax.Array,
        window_strides: Sequence[int],
        padding: str | Sequence[tuple[int, int]],
        lhs_dilation: Sequence[int] | None = None,
        rhs_dilation: Sequence[int] | None = None,
        dimension_numbers: Any = None,
        feature_group_count: int = 1,
        batch_group_count: int = 1,
        precision: Any = None,
        preferred_element_type: Any = None,
        out_sharding: Any = None,
    ) -> jax.Array:
        plain = batch_group_count == 1 and out_sharding is None and all(step == 1 for step in lhs_dilation or ())
        if plain and preferred_element_type in (None, lhs.dtype) and _has_primitive(lhs, rhs, dimension_numbers):
            window = _window(lhs, rhs, window_strides, padding, rhs_dilation, feature_group_count)
            divides = self.mesh is None or lhs.shape[0] % self.mesh.size == 0
            if divides and min(*window.padding[0], *window.padding[1]) >= 0:
                return self._by_primitive(lhs, rhs, window)
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
            out_sharding,
        )

    def _by_primitive(self, lhs: jax.Array, rhs: jax.Array, window: _Window) -> jax.Array:
        convolve: Callable[..., jax.Array] = functools.partial(_forward, window=window, always=self.always)
        if self.mesh is not None:
            whole, split = PartitionSpec(), PartitionSpec(self.mesh.axis_names[0])
            convolve = jax.shard_map(
                convolve, mesh=self.mesh, in_specs=(split, whole), out_specs=split, check_vma=False
            )
        return convolve(lhs, rhs)


def _has_primitive(lhs: jax.Array, rhs: jax.Array, numbers: Any) -> bool:
    """Return True if the primitives below know arrays of this dtype and layout."""
    return (
        lhs.ndim == rhs.ndim == 4
        and lhs.dtype == rhs.dtype
        and str(lhs.dtype) in DTYPES
        and _is_nhwc(lhs, rhs, numbers)
        and not typed_by_mesh(lhs)
        and not typed_by_mesh(rhs)
    )


def _is_nhwc(lhs: jax.Array, rhs: jax.Array, numbers: Any) -> bool:
    return lax.conv_dimension_numbers(lhs.shape, rhs.shape, numbers) == lax.conv_dimension_numbers(
        lhs.shape, rhs.shape, _LAYOUT
    )


def typed_by_mesh(array: jax.Array) -> bool:
    """Return True if the type names axes of a mesh over which the array is split. Only JAX's operations keep them."""
    kind: Any = jax.typeof(array)
    if getattr(kind, "vma", None):
        return True
    mesh = kind.sharding.mesh
    return not mesh.empty and any("Explicit" in str(axis) for axis in mesh.axis_types)


def _window(lhs: Any, rhs: Any, strides: Any, padding: Any, dilation: Any, groups: int) -> _Window:
    rows, columns = (int(step) for step in strides)
    down, right = (int(step) for step in dilation or (1, 1))
    if isinstance(padding, str):
        reach = [(size - 1) * step + 1 for size, step in zip(rhs.shape[:2], (down, right), strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:3], reach, (rows, columns), padding)
    (top, bottom), (before, after) = ((int(low), int(high)) for low, high in padding)
    return _Window((rows, columns), ((top, bottom), (before, after)), (down, right), int(groups))


# --- the three functions, computed by XLA -----------------------------------------------------------------------------


def _xla_forward(x: Any, w: Any, *, window: _Window, **_: Any) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        w,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=_LAYOUT,
        feature_group_count=window.groups,
    )


def _xla_data_gradient(g: Any, w: Any, *, window: _Window, size: tuple[int, int], **_: Any) -> jax.Array:
    x = jax.ShapeDtypeStruct((g.shape[0], *size, w.shape[2] * window.groups), g.dtype)
    gradient: jax.Array = jax.linear_transpose(lambda x: _xla_forward(x, w, window=window), x)(g)[0]
    return gradient


def _xla_weight_gradient(x: Any, g: Any, *, window: _Window, size: tuple[int, int], **_: Any) -> jax.Array:
    w = jax.ShapeDtypeStruct((*size, x.shape[3] // window.groups, g.shape[3]), g.dtype)
    gradient: jax.Array = jax.linear_transpose(lambda w: _xla_forward(x, w, window=window), w)(g)[0]
    return gradient


# --- by oneDNN --------------------------------------------------------------------------------------------------------


@functools.cache
def _planner(bridge: Bridge) -> Planner:
    return Planner(bridge)


def shape_of(direction: str, a: Any, b: Any, out: Any, window: _Window) -> Shape:
    """Return the sizes of a convolution in a direction, from the types of its two arguments and its result."""
    image, kernel, output = {FORWARD: (a, b, out), DATA: (out, b, a), WEIGHTS: (a, out, b)}[direction]
    return Shape(direction, image.shape, kernel.shape, output.shape, *window, str(a.dtype))


def planned(shape: Shape, *, always: bool = False) -> Planned | None:
    """Return the plan of oneDNN for a convolution; None if XLA computes it."""
    if not (always or wins(shape)) or min(*shape.image, *shape.kernel, *shape.output) < 1:
        return None
    return _planner(connect()).plan(shape)


def _execution(direction: str, xla: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def execute(a: Any, b: Any, *, window: _Window, always: bool, **size: Any) -> jax.Array:
        out = jax.eval_shape(functools.partial(xla, window=window, **size), a, b)
        plan = planned(shape_of(direction, a, b, out, window), always=always)
        if plan is None:
            return xla(a, b, window=window, **size)
        # The scratch memory is a second result: XLA plans its memory, and oneDNN allocates none.
        results = (jax.ShapeDtypeStruct(out.shape, out.dtype), jax.ShapeDtypeStruct((plan.scratch,), jnp.uint8))
        result: jax.Array = jax.ffi.ffi_call(TARGET, results)(a, b, convolution=plan.name)[0]
        return result

    return execute


# --- as primitives ----------------------------------------------------------------------------------------------------


def _primitive(direction: str, xla: Callable[..., jax.Array]) -> Primitive:
    primitive = Primitive(f"onednn convolution, {direction}")

    def abstract(a: Any, b: Any, **params: Any) -> Any:
        out = jax.eval_shape(
            functools.partial(xla, **params), *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (a, b))
        )
        return jax.core.ShapedArray(out.shape, out.dtype)

    def batched(arguments: Any, axes: Any, **params: Any) -> Any:
        return jax.vmap(functools.partial(xla, **params), in_axes=tuple(axes))(*arguments), 0

    primitive.def_abstract_eval(abstract)

    def compiled(a: Any, b: Any, **params: Any) -> Any:
        with jax.disable_jit(False):  # it would call this function again
            return _jitted(primitive)(a, b, **params)

    primitive.def_impl(compiled)
    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, mlir.lower_fun(xla, multiple_results=False))
    mlir.register_lowering(
        primitive, mlir.lower_fun(_execution(direction, xla), multiple_results=False), platform="cpu"
    )
    return primitive


@functools.cache
def _jitted(primitive: Primitive) -> Callable[..., Any]:
    return jax.jit(primitive.bind, static_argnames=("window", "always", "size"))


forward_p = _primitive(FORWARD, _xla_forward)
_data_p = _primitive(DATA, _xla_data_gradient)
_weights_p = _primitive(WEIGHTS, _xla_weight_gradient)


def _forward(x: Any, w: Any, *, window: _Window, always: bool) -> Any:
    return forward_p.bind(x, w, window=window, always=always)


def _data_gradient(g: Any, w: Any, size: Sequence[int], *, window: _Window, always: bool) -> Any:
    return _data_p.bind(g, w, window=window, always=always, size=tuple(size))


def _weight_gradient(x: Any, g: Any, size: Sequence[int], *, window: _Window, always: bool) -> Any:
    return _weights_p.bind(x, g, window=window, always=always, size=tuple(size))


# Each rule gets the cotangent t of the result and both arguments; the argument of its gradient has only a type.
ad.defbilinear(
    forward_p,
    lambda t, x, w, **how: _data_gradient(t, w, x.aval.shape[1:3], **how),
    lambda t, x, w, **how: _weight_gradient(x, t, w.aval.shape[:2], **how),
)
ad.defbilinear(
    _data_p,
    lambda t, g, w, size, **how: _forward(t, w, **how),
    lambda t, g, w, size, **how: _weight_gradient(t, g, w.aval.shape[:2], **how),
)
ad.defbilinear(
    _weights_p,
    lambda t, x, g, size, **how: _data_gradient(g, t, x.aval.shape[1:3], **how),
    lambda t, x, g, size, **how: _forward(x, t, **how),
)
