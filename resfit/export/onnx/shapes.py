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


def _picked(sizes: Shape, axes: Sequence[int]) -> Shape:
    return tuple(sizes[axis] for axis in axes)


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


# --- shape ------------------------------------------------------------------------------------------------------------


def _transpose(_: Graph, eqn: Any, inputs: Sequence[Value]) -> Value:
    return _moved(inputs[0], eqn.params["permutation"])


def _moved(x: Value, axes: Sequence[int]) -> Value:
    """Return the value with its axes in another order of the program; nothing moves in memory."""
    axes = tuple(axes)
    array = None if x.array is None else x.array.transpose(axes)
    order = identity(len(axes)) if array is not None else tuple(axes.index(axis) for axis in x.order)
    return x._replace(shape=_picked(x.shape, axes), dims=_picked(x.dims, axes), order=order, array=array)


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
    return _squeezed(g, inputs[0], eqn.params["dimensions"])


def _squeezed(g: Graph, x: Value, axes: Sequence[int]) -> Value:
    """Return the value without some axes of size 1."""
    if not axes:
        return x
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


def _stack(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value:
    axis, aval = eqn.params["axis"], eqn.outvars[0].aval
    place = g.constant(np.array([axis], np.int64))
    names = [g.raw("Unsqueeze", g.stored(g.full(x)), place) for x in inputs]
    return g.add("Concat", names, aval.shape, aval.dtype, axis=axis)


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
    cuts = {}
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if size != x.shape[axis]:
            if start.array is None:
                return None
            first = int(np.clip(int(start.array.reshape(())), 0, x.shape[axis] - size))
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
    numbers, d = inputs[1], eqn.params["dimension_numbers"]
    if d.operand_batching_dims:
        return None
    return _entries(g, eqn, inputs) if numbers.array is None else _grid(g, eqn, inputs)


def _entries(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value | None:
    """Return entries along one axis by their numbers, which the program computes."""
    x, numbers = (g.full(value) for value in inputs)
    d, sizes, rank, extra = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], len(inputs[0].shape), 0
    if len(d.start_index_map) != 1 or tuple(d.collapsed_slice_dims) != tuple(d.start_index_map):
        return None
    (axis,), extra = d.start_index_map, len(numbers.shape) - 1
    whole = all(size == x.shape[i] for i, size in enumerate(sizes) if i != axis)
    if not whole or tuple(d.offset_dims) != tuple(i for i in range(rank - 1 + extra) if not axis <= i < axis + extra):
        return None
    which = g.raw("Squeeze", g.stored(cast(g, numbers, np.int64)), g.constant(np.array([extra], np.int64)))
    aval = eqn.outvars[0].aval
    return g.add("Gather", [g.stored(x), which], aval.shape, aval.dtype, axis=axis)


def _grid(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value | None:
    """Return the entries at constant places along some axes, such as `x[:, ::2, ::2]` or `x[..., 0]`."""
    x, numbers = g.full(inputs[0]), np.asarray(g.full(inputs[1]).array)
    d, sizes, aval = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], eqn.outvars[0].aval
    source: dict[int, int] = {}  # axis of the numbers -> axis of x
    for i, axis in enumerate(d.start_index_map):
        column = numbers[..., i]
        varies = [k for k in range(column.ndim) if (column != column.take([0], k)).any()]
        if len(varies) > 1 or (varies and axis not in d.collapsed_slice_dims) or set(varies) & set(source):
            return None
        places = column[tuple(slice(None) if k in varies else 0 for k in range(column.ndim))].reshape(-1)
        if axis not in d.collapsed_slice_dims:
            places = np.arange(places[0], places[0] + sizes[axis])
        x = _places(g, x, axis, places)
        source.update(dict.fromkeys(varies, axis))
    dropped = [axis for axis in d.collapsed_slice_dims if axis not in source.values()]
    for k in set(range(numbers.ndim - 1)) - set(source):
        if numbers.shape[k] != 1 or not dropped:
            return None
        source[k] = dropped.pop()  # an axis with one entry, as this one
    offsets = iter(axis for axis in range(len(x.shape)) if axis not in d.collapsed_slice_dims)
    listed = iter(range(numbers.ndim - 1))
    axes = [next(offsets) if i in d.offset_dims else source[next(listed)] for i in range(len(aval.shape))]
    return _moved(_squeezed(g, x, dropped), [axis - sum(other < axis for other in dropped) for axis in axes])


def _places(g: Graph, x: Value, axis: int, places: np.ndarray[Any, Any]) -> Value:
    """Return the entries of a value at some places along an axis."""
    first, steps = int(places[0]), np.unique(np.diff(places))
    shape = (*x.shape[:axis], len(places), *x.shape[axis + 1 :])
    if len(steps) <= 1:
        step = int(steps[0]) if len(steps) else 1
        if step:
            end = int(places[-1]) + (1 if step > 0 else -1)
            return _sliced(g, x, {axis: (first, _START if end < 0 else end, step)}, shape)
    which = g.constant(places.astype(np.int64))
    return g.add("Gather", [g.stored(x, x.order), which], shape, x.dtype, x.order, axis=x.order.index(axis))


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


def _size(g: Graph, eqn: Any, _: Sequence[Value]) -> Value:
    """Return the batch size as a number."""
    vector = g.lengths([eqn.params["dim"]])
    found = g.add("Squeeze", [vector, g.constant(np.array([0], np.int64))], (), np.int64)
    return cast(g, found, eqn.outvars[0].aval.dtype)


RULES: Mapping[str, Rule] = MappingProxyType({
    "argmax": _argument("ArgMax"),
    "argmin": _argument("ArgMin"),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "cumsum": _cumulative_sum,
    "dim_as_value": _size,
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
    "stack": _stack,
    "transpose": _transpose,
})  # fmt: skip
"""The rule of each of these primitives; a rule returns None for a form that ONNX lacks."""
