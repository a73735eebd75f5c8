"""The primitives of JAX that move, select or reduce elements, as ONNX operations."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from resfit.export.onnx.elementwise import Rule, cast
from resfit.export.onnx.graph import Graph, Order, Shape, Value, constant, identity


def _without(order: Order, axes: Sequence[int]) -> Order:
    """Return the stored order of the axes that remain, with their new numbers."""
    kept = sorted(set(order) - set(axes))
    return tuple(kept.index(axis) for axis in order if axis in kept)


def _kept(sizes: Shape, axes: Sequence[int]) -> Shape:
    return tuple(size for axis, size in enumerate(sizes) if axis not in axes)


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


# --- shape ------------------------------------------------------------------------------------------------------------


def _transpose(_: Graph, eqn: Any, inputs: Sequence[Value]) -> Value:
    (x,) = inputs
    axes = tuple(eqn.params["permutation"])
    moved = lambda sizes: tuple(sizes[axis] for axis in axes)  # noqa: E731
    array = None if x.array is None else x.array.transpose(axes)
    order = identity(len(axes)) if array is not None else tuple(axes.index(axis) for axis in x.order)
    return x._replace(shape=moved(x.shape), dims=moved(x.dims), order=order, array=array)


def _broadcast(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value:
    """Return the value with further axes of the stored size 1: operations repeat them."""
    x = inputs[0]
    shape, places = tuple(eqn.outvars[0].aval.shape), tuple(eqn.params["broadcast_dimensions"])
    dims = tuple(x.dims[places.index(axis)] if axis in places else 1 for axis in range(len(shape)))
    if x.array is not None:
        return x._replace(shape=shape, dims=dims, order=identity(len(shape)), array=x.array.reshape(dims))
    if len(shape) == len(places):
        return x._replace(shape=shape, dims=dims)
    new = [axis for axis in range(len(shape)) if axis not in places]
    # The first axis keeps its place, and the new ones follow the others, as the spatial axes do in convolutions.
    order = (*(places[axis] for axis in x.order), *new) if 0 in places else (*new, *(places[axis] for axis in x.order))
    stored = g.constant(np.array([i for i, axis in enumerate(order) if axis in new], np.int64))
    found = g.add("Unsqueeze", [g.stored(x, x.order), stored], shape, x.dtype, order)
    return found._replace(dims=dims)


def _squeeze(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value:
    (x,) = inputs
    axes = eqn.params["dimensions"]
    shape, dims, order = _kept(x.shape, axes), _kept(x.dims, axes), _without(x.order, axes)
    if x.array is not None:
        return x._replace(shape=shape, dims=dims, order=identity(len(shape)), array=x.array.reshape(dims))
    stored = g.constant(np.array(sorted(x.order.index(axis) for axis in axes), np.int64))
    return g.add("Squeeze", [g.stored(x, x.order), stored], shape, x.dtype, order)._replace(dims=dims)


def _reshape(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value | None:
    x, shape = g.full(inputs[0]), tuple(eqn.outvars[0].aval.shape)
    if eqn.params.get("dimensions") is not None:
        return None
    unknown = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
    if len(unknown) == 1:
        target = g.constant(np.array([-1 if axis in unknown else size for axis, size in enumerate(shape)], np.int64))
    else:
        target = g.lengths(shape)
    return g.add("Reshape", [g.stored(x), target], shape, x.dtype)


def _concatenate(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value:
    parts, aval = [g.full(x) for x in inputs], eqn.outvars[0].aval
    order = next((x.order for x in parts if x.array is None), identity(len(aval.shape)))
    names = [g.stored(x, order) for x in parts]
    return g.add("Concat", names, aval.shape, aval.dtype, order, axis=order.index(eqn.params["dimension"]))


def _pad(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value | None:
    x, filler = g.full(inputs[0]), inputs[1]
    config, aval = eqn.params["padding_config"], eqn.outvars[0].aval
    if filler.array is None or any(interior for *_, interior in config):
        return None
    ends = [(max(low, 0), max(high, 0)) for low, high, _ in config]
    name = g.stored(x, x.order)
    if any(low or high for low, high in ends):
        pads = [ends[axis][side] for side in (0, 1) for axis in x.order]
        filled = g.stored(constant(filler.array.reshape(())))
        name = g.raw("Pad", name, g.constant(np.array(pads, np.int64)), filled)
    found = Value(aval.shape, x.dtype, aval.shape, x.order, name)
    cuts = {axis: (max(-low, 0), -max(-high, 0)) for axis, (low, high, _) in enumerate(config) if min(low, high) < 0}
    return _sliced(g, found, {axis: (a, b or _END, 1) for axis, (a, b) in cuts.items()}, aval.shape)


_END, _START = np.iinfo(np.int64).max, np.iinfo(np.int64).min


def _sliced(g: Graph, x: Value, cuts: Mapping[int, tuple[int, int, int]], shape: Shape) -> Value:
    """Return a part of a value: start, end and step by axis."""
    cuts = {axis: cut for axis, cut in cuts.items() if not _is_one(x.dims[axis])}
    dims = tuple(1 if _is_one(old) else new for old, new in zip(x.dims, shape, strict=True))
    if not cuts:
        return x._replace(shape=shape, dims=dims)
    axes = sorted(cuts, key=x.order.index)
    columns = [*zip(*(cuts[axis] for axis in axes), strict=True)]
    starts, ends, steps = (g.constant(np.array(column, np.int64)) for column in columns)
    places = g.constant(np.array([x.order.index(axis) for axis in axes], np.int64))
    found = g.add("Slice", [g.stored(x, x.order), starts, ends, places, steps], shape, x.dtype, x.order)
    return found._replace(dims=dims)


def _slice(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value:
    (x,), p = inputs, eqn.params
    steps = p["strides"] or (1,) * len(x.shape)
    bounds = zip(p["start_indices"], p["limit_indices"], steps, strict=True)
    cuts = {
        axis: (start, end, step)
        for axis, (start, end, step) in enumerate(bounds)
        if not (isinstance(start, int) and start == 0 and step == 1 and end == x.shape[axis])
    }
    return _sliced(g, x, cuts, tuple(eqn.outvars[0].aval.shape))


def _dynamic_slice(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value | None:
    x, *starts = inputs
    sizes = eqn.params["slice_sizes"]
    if any(start.array is None for start in starts):
        return None
    cuts = {}
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if size != x.shape[axis]:
            first = int(np.clip(int(start.array.reshape(())), 0, x.shape[axis] - size))  # type: ignore[union-attr]
            cuts[axis] = (first, first + size, 1)
    return _sliced(g, x, cuts, tuple(eqn.outvars[0].aval.shape))


def _reverse(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value:
    (x,) = inputs
    return _sliced(g, x, dict.fromkeys(eqn.params["dimensions"], (-1, _START, -1)), x.shape)


def _split(g: Graph, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    (x,), axis = inputs, eqn.params["axis"]
    ends = np.cumsum(eqn.params["sizes"]).tolist()
    cuts = [{axis: (end - size, end, 1)} for size, end in zip(eqn.params["sizes"], ends, strict=True)]
    return [_sliced(g, x, cut, out.aval.shape) for cut, out in zip(cuts, eqn.outvars, strict=True)]


def _gather(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value | None:
    """Return entries along one axis, by their numbers."""
    x, numbers = g.full(inputs[0]), g.full(inputs[1])
    d, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    if len(d.start_index_map) != 1 or d.collapsed_slice_dims != d.start_index_map or d.operand_batching_dims:
        return None
    (axis,) = d.start_index_map
    rank, extra = len(x.shape), len(numbers.shape) - 1
    whole = all(size == x.shape[i] for i, size in enumerate(sizes) if i != axis)
    if not whole or tuple(d.offset_dims) != tuple(i for i in range(rank - 1 + extra) if not axis <= i < axis + extra):
        return None
    last = g.constant(np.array([len(numbers.shape) - 1], np.int64))
    which = g.raw("Squeeze", g.stored(cast(g, numbers, np.int64)), last)
    aval = eqn.outvars[0].aval
    return g.add("Gather", [g.stored(x), which], aval.shape, aval.dtype, axis=axis)


# --- reductions -------------------------------------------------------------------------------------------------------

AXES_ARE_AN_INPUT = {"ReduceSum": 13, "ReduceMax": 18, "ReduceMin": 18, "ReduceProd": 18, "ReduceMean": 18}
"""The version of the operations from which the axes of a reduction are an input, not an attribute."""


def _reduction(op: str) -> Rule:
    def rule(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value:
        x, axes, aval = g.full(inputs[0]), eqn.params["axes"], eqn.outvars[0].aval
        stored = sorted(x.order.index(axis) for axis in axes)
        names, attributes = [g.stored(x, x.order)], dict[str, Any](keepdims=0)
        if g.opset >= AXES_ARE_AN_INPUT[op]:
            names.append(g.constant(np.array(stored, np.int64)))
        else:
            attributes["axes"] = stored
        found = g.add(op, names, tuple(aval.shape), x.dtype, _without(x.order, axes), **attributes)
        sizes = [x.shape[axis] for axis in axes]
        g.nodes[-1].size = math.prod(sizes) if all(isinstance(size, int) for size in sizes) else 0
        return found

    return rule


def _argument(op: str) -> Rule:
    def rule(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value:
        x, (axis,), aval = g.full(inputs[0]), eqn.params["axes"], eqn.outvars[0].aval
        name = g.stored(x, x.order)
        found = g.add(op, [name], aval.shape, np.int64, _without(x.order, [axis]), axis=x.order.index(axis), keepdims=0)
        return cast(g, found, aval.dtype)

    return rule


def _cumulative_sum(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value:
    x = g.full(inputs[0])
    axis = g.constant(np.array(x.order.index(eqn.params["axis"]), np.int64))
    return g.add("CumSum", [g.stored(x, x.order), axis], x.shape, x.dtype, x.order, reverse=int(eqn.params["reverse"]))


RULES: Mapping[str, Rule] = MappingProxyType({
    "argmax": _argument("ArgMax"),
    "argmin": _argument("ArgMin"),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "cumsum": _cumulative_sum,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "pad": _pad,
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_prod": _reduction("ReduceProd"),
    "reduce_sum": _reduction("ReduceSum"),
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "transpose": _transpose,
})  # fmt: skip
"""The rule of each of these primitives; a rule returns None for a form that ONNX lacks."""
