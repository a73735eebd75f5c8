"""The primitives of JAX behind layers: convolutions, pooling and products of matrices, as ONNX operations."""

import math
import string
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from resfit.export.onnx.elementwise import Rule, apply, number
from resfit.export.onnx.graph import Graph, Order, Value


def _convolution(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value | None:
    x, kernel = (g.full(value) for value in inputs)
    p, aval = eqn.params, eqn.outvars[0].aval
    numbers = p["dimension_numbers"]
    padding = [*p["padding"]]
    dilated = any(step != 1 for step in p["lhs_dilation"])
    if p["batch_group_count"] != 1 or min((min(pair) for pair in padding), default=0) < 0:
        return None
    if dilated:
        return _transposed_convolution(g, eqn, x, kernel)
    names = [g.stored(x, tuple(numbers.lhs_spec)), g.stored(kernel, tuple(numbers.rhs_spec))]
    return g.add(
        "Conv", names, aval.shape, aval.dtype, tuple(numbers.out_spec),
        kernel_shape=[kernel.shape[axis] for axis in numbers.rhs_spec[2:]], strides=[*p["window_strides"]],
        pads=[pair[side] for side in (0, 1) for pair in padding], dilations=[*p["rhs_dilation"]],
        group=p["feature_group_count"],
    )  # fmt: skip


def _transposed_convolution(g: Graph, eqn: Any, x: Value, kernel: Value) -> Value | None:
    """Return a convolution of an image with zeros between its pixels, of one group and with a constant kernel."""
    p, aval = eqn.params, eqn.outvars[0].aval
    numbers = p["dimension_numbers"]
    if kernel.array is None or p["feature_group_count"] != 1 or any(step != 1 for step in p["window_strides"]):
        return None
    weights = kernel.array.transpose(numbers.rhs_spec).swapaxes(0, 1)  # (in, out, height, width)
    weights = np.flip(weights, axis=tuple(range(2, weights.ndim)))
    reach = [(size - 1) * step for size, step in zip(weights.shape[2:], p["rhs_dilation"], strict=True)]
    pads = [size - pair[side] for side in (0, 1) for size, pair in zip(reach, p["padding"], strict=True)]
    # ONNX adds more rows than its padding can remove: negative pads are further rows of zeros.
    if min(pads[: len(reach)]) < 0:
        return None
    extra = [max(-pad, 0) for pad in pads[len(reach) :]]
    if any(size >= step for size, step in zip(extra, p["lhs_dilation"], strict=True)):
        return None
    return g.add(
        "ConvTranspose", [g.stored(x, tuple(numbers.lhs_spec)), g.constant(weights, kernel.label)], aval.shape,
        aval.dtype, tuple(numbers.out_spec), kernel_shape=[*weights.shape[2:]], strides=[*p["lhs_dilation"]],
        pads=[max(pad, 0) for pad in pads], output_padding=extra, dilations=[*p["rhs_dilation"]],
    )  # fmt: skip


# --- pooling ----------------------------------------------------------------------------------------------------------


def _spatial_last(order: Order, windowed: Sequence[int], rank: int) -> Order | None:
    """Return an order of axes with two axes in front that the window does not cover."""
    if rank < 3 or len(windowed) > rank - 2:
        return None
    if not set(order[:2]) & set(windowed):
        return order
    free = [axis for axis in range(rank) if axis not in windowed]
    front = [free[0], free[-1]]
    return (*front, *(axis for axis in range(rank) if axis not in front))


def _pooling(op: str) -> Rule:
    def rule(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value | None:
        x, p, aval = g.full(inputs[0]), eqn.params, eqn.outvars[0].aval
        sizes, steps, padding = p["window_dimensions"], p["window_strides"], p["padding"]
        dilations = p["window_dilation"]
        windowed = [i for i, found in enumerate(zip(sizes, steps, padding, strict=True)) if found != (1, 1, (0, 0))]
        order = _spatial_last(x.order, windowed, len(x.shape))
        if order is None or any(step != 1 for step in p["base_dilation"]) or not _is_covered(sizes, padding):
            return None
        spatial = order[2:]
        attributes = {
            "kernel_shape": [sizes[axis] for axis in spatial], "strides": [steps[axis] for axis in spatial],
            "pads": [padding[axis][side] for side in (0, 1) for axis in spatial],
        }  # fmt: skip
        if op == "MaxPool":
            attributes["dilations"] = [dilations[axis] for axis in spatial]
            return g.add(op, [g.stored(x, order)], aval.shape, aval.dtype, order, **attributes)
        if any(step != 1 for step in dilations):
            return None
        mean = g.add(op, [g.stored(x, order)], aval.shape, aval.dtype, order, count_include_pad=1, **attributes)
        return apply(g, "Mul", [mean, number(mean, math.prod(sizes))], aval.dtype)

    return rule


def _is_covered(sizes: Sequence[int], padding: Sequence[tuple[int, int]]) -> bool:
    """Return True if no window lies in the padding alone, and nothing is cut off, as ONNX demands."""
    return all(0 <= side < size for size, sides in zip(sizes, padding, strict=True) for side in sides)


# --- products ---------------------------------------------------------------------------------------------------------


def _dot(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value:
    """Return a product of matrices, or, with other axes, an `Einsum`."""
    a, b = (g.full(value) for value in inputs)
    ((of_a, of_b), (batch_a, batch_b)), aval = eqn.params["dimension_numbers"], eqn.outvars[0].aval
    if not batch_a and tuple(of_a) == (len(a.shape) - 1,) and len(b.shape) == 2 and len(a.shape) >= 2:
        found = g.add("MatMul", [g.stored(a), g.stored(b, (of_b[0], 1 - of_b[0]))], aval.shape, aval.dtype)
        g.nodes[-1].size = len(a.shape)
        return found
    letters = iter(string.ascii_lowercase)
    names_a = [next(letters) for _ in a.shape]
    names_b = [next(letters) for _ in b.shape]
    for left, right in zip((*of_a, *batch_a), (*of_b, *batch_b), strict=True):
        names_b[right] = names_a[left]
    free = [
        [name for axis, name in enumerate(names) if axis not in (*summed, *batch)]
        for names, summed, batch in ((names_a, of_a, batch_a), (names_b, of_b, batch_b))
    ]
    result = [*(names_a[axis] for axis in batch_a), *free[0], *free[1]]
    equation = f"{''.join(names_a)},{''.join(names_b)}->{''.join(result)}"
    return g.add("Einsum", [g.stored(a), g.stored(b)], aval.shape, aval.dtype, equation=equation)


RULES: Mapping[str, Rule] = MappingProxyType({
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "reduce_window_max": _pooling("MaxPool"),
    "reduce_window_sum": _pooling("AveragePool"),
})  # fmt: skip
"""The rule of each of these primitives; a rule returns None for a form that ONNX lacks."""
