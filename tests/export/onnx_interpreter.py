"""A small interpreter of ONNX graphs: the definitions of the operations, in NumPy and XLA's convolutions."""

import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from resfit.export.onnx.graph import Graph, Node

SCHEMAS = Path(__file__).parents[1] / "golden" / "onnx_schemas.json"  # of `tests/golden/make_onnx_schemas.py`


@functools.cache
def _schemas() -> Any:
    return json.loads(SCHEMAS.read_text())["operations"]


def assert_allowed(node: Node, opset: int, *inputs: Any) -> None:
    """Check a node as `onnx.checker` does: attributes, number of inputs and their dtypes, for a version of ONNX."""
    schema = [one for one in _schemas()[node.op] if one["since"] <= opset][-1]
    attributes = schema["attributes"]
    assert set(node.attributes) <= set(attributes), f"{node.op} {opset} has no attribute {sorted(node.attributes)}"
    needed = {name for name, required in attributes.items() if required}
    assert needed <= set(node.attributes), f"{node.op} {opset} needs {needed}"
    fewest, most = schema["inputs"]
    assert fewest <= len(inputs) <= most, f"{node.op} {opset} takes {fewest} to {most} inputs"
    for i, value in enumerate(inputs):
        allowed = schema["types"][min(i, len(schema["types"]) - 1)]
        kind = {"float32": "float", "float64": "double"}.get(str(value.dtype), str(value.dtype))
        assert kind in allowed, f"input {i} of {node.op} {opset} is {kind}, not one of {allowed}"


def run(g: Graph, *inputs: Any) -> list[np.ndarray]:
    """Return the outputs of a graph, and check their dtypes and shapes against the declared ones."""
    known: dict[str, Any] = dict(g.arrays)
    for port, value in zip(g.inputs, inputs, strict=True):
        assert port.dtype == value.dtype
        assert_fits(port.shape, value.shape, rows=len(inputs[0]))
        known[port.name] = value
    for node in g.nodes:
        assert not set(node.outputs) & set(known), "a name is given twice"
        values = [known[name] for name in node.inputs]
        assert_allowed(node, g.opset, *values)
        known[node.outputs[0]] = np.asarray(OPERATIONS[node.op](node, *values))
    for port in g.outputs:
        assert known[port.name].dtype == port.dtype
        assert_fits(port.shape, known[port.name].shape, rows=len(inputs[0]))
    return [known[port.name] for port in g.outputs]


def assert_fits(declared: Sequence[Any], shape: Sequence[int], rows: int) -> None:
    assert [rows if size == "batch" else size for size in declared] == list(shape)


def _convolution(node: Node, x: Any, kernel: Any, bias: Any = 0.0) -> Any:
    p = node.attributes
    half = len(p["pads"]) // 2
    assert [*kernel.shape[2:]] == p["kernel_shape"]
    y = lax.conv_general_dilated(
        x, kernel, p["strides"], [*zip(p["pads"][:half], p["pads"][half:], strict=True)],
        rhs_dilation=p["dilations"], feature_group_count=p["group"],
    )  # fmt: skip
    return np.asarray(y) + np.reshape(np.asarray(bias, x.dtype), (-1,) + (1,) * half)


def _transposed_convolution(node: Node, x: Any, kernel: Any) -> Any:
    """Return the sum of the kernels at every pixel, cut by the pads (ONNX: ConvTranspose)."""
    p = node.attributes
    half = len(p["pads"]) // 2
    reach = [(size - 1) * step for size, step in zip(kernel.shape[2:], p["dilations"], strict=True)]
    sizes = [(n - 1) * step + r + 1 for n, step, r in zip(x.shape[2:], p["strides"], reach, strict=True)]
    whole = np.zeros(
        (len(x), kernel.shape[1], *(s + o for s, o in zip(sizes, p["output_padding"], strict=True))), x.dtype
    )
    for place in np.ndindex(*x.shape[2:]):
        for tap in np.ndindex(*kernel.shape[2:]):
            at = tuple(i * s + t * d for i, s, t, d in zip(place, p["strides"], tap, p["dilations"], strict=True))
            whole[(slice(None), slice(None), *at)] += (
                x[(slice(None), slice(None), *place)] @ kernel[(slice(None), slice(None), *tap)]
            )
    ends = [size - pad for size, pad in zip(whole.shape[2:], p["pads"][half:], strict=True)]
    return whole[(slice(None), slice(None), *(slice(a, b) for a, b in zip(p["pads"][:half], ends, strict=True)))]


def _pool(start: float, combine: Any) -> Callable[..., Any]:
    def pool(node: Node, x: Any) -> Any:
        p = node.attributes
        half = len(p["pads"]) // 2
        padding = [(0, 0), (0, 0), *zip(p["pads"][:half], p["pads"][half:], strict=True)]
        window = (1, 1, *p["kernel_shape"])
        found = lax.reduce_window(
            x, np.asarray(start, x.dtype), combine, window, (1, 1, *p["strides"]), padding,
            window_dilation=(1, 1, *p.get("dilations", [1] * half)),
        )  # fmt: skip
        return found / math.prod(window) if combine is lax.add else found

    return pool


def _slice(_: Node, x: Any, starts: Any, ends: Any, axes: Any, steps: Any = None) -> Any:
    cut = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, np.ones_like(axes) if steps is None else steps, strict=True):
        cut[axis] = slice(int(start), None if step < 0 and end < -x.shape[axis] else int(end), int(step))
    return x[tuple(cut)]


def _rows(_: Node, x: Any, start: Any, end: Any) -> Any:
    return x[int(start[0]) : int(end[0])]


def _reduction(function: Any) -> Callable[..., Any]:
    def reduce(node: Node, x: Any, axes: Any = None) -> Any:
        assert node.attributes["keepdims"] == 0
        places = node.attributes["axes"] if axes is None else axes
        return function(x, axis=tuple(int(axis) for axis in places)).astype(x.dtype)

    return reduce


def _pad(_: Node, x: Any, pads: Any, filler: Any) -> Any:
    half = len(pads) // 2
    return np.pad(x, [*zip(pads[:half], pads[half:], strict=True)], constant_values=filler)


def _normalization(node: Node, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
    column = lambda array: array.reshape(-1, *[1] * (x.ndim - 2))  # noqa: E731
    return (x - column(mean)) / np.sqrt(column(variance) + node.attributes["epsilon"]) * column(scale) + column(bias)


def _running_sum(node: Node, x: Any, axis: Any) -> Any:
    return np.flip(np.flip(x, axis).cumsum(axis), axis) if node.attributes["reverse"] else x.cumsum(axis)


def _plain(function: Any) -> Callable[..., Any]:
    return lambda node, *inputs: function(*inputs)


OPERATIONS: dict[str, Callable[..., Any]] = {
    **{
        name: _plain(function)
        for name, function in {
            "Abs": np.abs, "Add": np.add, "And": np.logical_and, "Ceil": np.ceil, "Cos": np.cos, "Equal": np.equal,
            "Erf": jax.scipy.special.erf, "Exp": np.exp, "Floor": np.floor, "Greater": np.greater,
            "GreaterOrEqual": np.greater_equal, "Identity": np.asarray, "IsNaN": np.isnan, "Less": np.less,
            "LessOrEqual": np.less_equal, "Log": np.log, "MatMul": np.matmul, "Max": np.maximum, "Min": np.minimum,
            "Mul": np.multiply, "Neg": np.negative, "Not": np.logical_not, "Or": np.logical_or, "Pow": np.power,
            "Reciprocal": np.reciprocal, "Relu": lambda x: np.maximum(x, 0), "Round": np.round,
            "Sigmoid": jax.nn.sigmoid, "Sign": np.sign, "Sin": np.sin, "Sqrt": np.sqrt,
            "Sub": np.subtract, "Tan": np.tan, "Tanh": np.tanh,
            "Where": np.where, "Xor": np.logical_xor, "Shape": lambda x: np.array(x.shape, np.int64),
            "Expand": lambda x, shape: np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape))),
            "Gemm": lambda a, b, c: a @ b + c, "Reshape": lambda x, shape: x.reshape(tuple(shape)),
            "Squeeze": lambda x, axes: x.squeeze(tuple(int(axis) for axis in axes)),
            "Unsqueeze": lambda x, axes: np.expand_dims(x, tuple(int(axis) for axis in axes)),
        }.items()
    },
    "ArgMax": lambda node, x: x.argmax(node.attributes["axis"]).astype(np.int64),
    "ArgMin": lambda node, x: x.argmin(node.attributes["axis"]).astype(np.int64),
    "AveragePool": _pool(0.0, lax.add),
    "BatchNormalization": _normalization,
    "Cast": lambda node, x: x.astype(node.attributes["to"]),
    "Concat": lambda node, *parts: np.concatenate(parts, node.attributes["axis"]),
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "CumSum": _running_sum,
    "Div": lambda node, a, b: np.divide(a, b) if a.dtype.kind == "f" else np.trunc(a / b).astype(a.dtype),
    "Einsum": lambda node, *inputs: np.einsum(node.attributes["equation"], *inputs),
    "Gather": lambda node, x, which: x.take(which, node.attributes["axis"]),
    "MaxPool": _pool(-np.inf, lax.max),
    "Mod": lambda node, a, b: np.fmod(a, b),
    "Pad": _pad,
    "ReduceMax": _reduction(np.max),
    "ReduceMean": _reduction(np.mean),
    "ReduceMin": _reduction(np.min),
    "ReduceProd": _reduction(np.prod),
    "ReduceSum": _reduction(np.sum),
    "Slice": lambda node, *inputs: (_slice if len(inputs) > 3 else _rows)(node, *inputs),
    "Transpose": lambda node, x: x.transpose(node.attributes["perm"]),
}  # fmt: skip


def evaluate(function: Callable[..., Any], *inputs: Any) -> list[np.ndarray]:
    """Return the outputs of a function of JAX, compiled once."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(function)(*map(jnp.asarray, inputs)))]
