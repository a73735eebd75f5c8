"""The elementwise primitives of JAX as ONNX operations."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from resfit.export.onnx.graph import Graph, Shape, Value, constant, identity, stored_dtype

# A rule appends the nodes of one primitive and returns its results: (graph, equation, inputs) -> value or values.
Rule = Callable[[Graph, Any, Sequence[Value]], Any]

# Primitive -> operation with the same inputs.
_SAME: Mapping[str, str] = MappingProxyType({
    "abs": "Abs", "add": "Add", "add_any": "Add", "and": "And", "ceil": "Ceil", "cos": "Cos", "div": "Div",
    "eq": "Equal", "erf": "Erf", "exp": "Exp", "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater",
    "is_nan": "IsNaN", "le": "LessOrEqual", "log": "Log", "logistic": "Sigmoid", "lt": "Less", "max": "Max",
    "min": "Min", "mul": "Mul", "neg": "Neg", "not": "Not", "or": "Or", "pow": "Pow", "sign": "Sign", "sin": "Sin",
    "sqrt": "Sqrt", "sub": "Sub", "tan": "Tan", "tanh": "Tanh", "xor": "Xor",
})  # fmt: skip
_BITWISE = ("and", "or", "xor", "not")
_UNCHANGED = (
    "copy",
    "copy_p",
    "name",
    "optimization_barrier",
    "reduce_precision",
    "sharding_constraint",
    "stop_gradient",
)


def apply(g: Graph, op: str, inputs: Sequence[Value], dtype: Any, **attributes: Any) -> Value:
    """Append an elementwise node, whose inputs keep the order in which their axes are stored.

    Args:
      g: the graph.
      op: ONNX's name of the operation, which broadcasts as NumPy does.
      inputs: of one rank, or of rank 0.
      dtype: of the result.
      attributes: of the node.
    """
    rank = max(len(value.shape) for value in inputs)
    whole = [value for value in inputs if len(value.shape) == rank]
    order = next((value.order for value in whole if value.array is None), identity(rank))
    names = [g.stored(value, order if len(value.shape) == rank else ()) for value in inputs]
    found = g.add(op, names, _widest([value.shape for value in whole]), dtype, order, **attributes)
    return found._replace(dims=_widest([value.dims for value in whole]))


def _widest(shapes: Sequence[Shape]) -> Shape:
    """Return the shape of a result, as NumPy's broadcasting decides it."""
    return tuple(
        next((size for size in sizes if not (isinstance(size, int) and size == 1)), 1)
        for sizes in zip(*shapes, strict=True)
    )


def _same(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value | None:
    op = _SAME[eqn.primitive.name]
    if eqn.primitive.name in _BITWISE and inputs[0].dtype != np.bool_:
        return None
    if op == "Max" and any(_is_number(value, 0) for value in inputs):
        return apply(g, "Relu", [value for value in inputs if not _is_number(value, 0)][:1], inputs[0].dtype)
    return apply(g, op, inputs, eqn.outvars[0].aval.dtype)


def _is_number(value: Value, number: float) -> bool:
    return (
        value.array is not None
        and value.array.size == 1
        and np.issubdtype(value.dtype, np.floating)
        and float(value.array.reshape(())) == number
    )


def _cast(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value:
    (x,) = inputs
    dtype = stored_dtype(eqn.outvars[0].aval.dtype)
    if np.issubdtype(x.dtype, np.floating) and np.issubdtype(dtype, np.integer):  # XLA saturates, and Cast need not
        lowest, highest = (x.dtype.type(end) for end in (np.iinfo(dtype).min, np.iinfo(dtype).max))
        if int(highest) > np.iinfo(dtype).max:
            highest = np.nextafter(highest, x.dtype.type(0))
        x = apply(g, "Min", [apply(g, "Max", [x, number(x, lowest)], x.dtype), number(x, highest)], x.dtype)
    return cast(g, x, dtype)


def cast(g: Graph, value: Value, dtype: Any) -> Value:
    """Return the value in another dtype."""
    dtype = stored_dtype(dtype)
    return value if value.dtype == dtype else apply(g, "Cast", [value], dtype, to=dtype)


def _unchanged(_: Graph, eqn: Any, inputs: Sequence[Value]) -> Any:
    return inputs[0] if len(eqn.outvars) == 1 else list(inputs)


def number(like: Value, value: float) -> Value:
    """Return a constant of rank 0 in the dtype of another value."""
    return constant(np.asarray(value, like.dtype))


def _composed(*steps: tuple[str, str]) -> Rule:
    """Return the rule of a primitive of one input that is several operations.

    Args:
      steps: operations, each with its further input: "" for none, "x" for the input itself, or a number, which stands
        before the input if it ends in "^".
    """

    def rule(g: Graph, _: Any, inputs: Sequence[Value]) -> Value:
        (x,) = inputs
        found = x
        for op, other in steps:
            further = [] if not other else [x if other == "x" else number(x, float(other.removesuffix("^")))]
            found = apply(g, op, [*further, found] if other.endswith("^") else [found, *further], x.dtype)
        return found

    return rule


def _integer_pow(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value:
    (x,) = inputs
    y = eqn.params["y"]
    return apply(g, "Mul", [x, x], x.dtype) if y == 2 else apply(g, "Pow", [x, number(x, y)], x.dtype)


def _not_equal(g: Graph, _: Any, inputs: Sequence[Value]) -> Value:
    return apply(g, "Not", [apply(g, "Equal", inputs, np.bool_)], np.bool_)


def _is_finite(g: Graph, _: Any, inputs: Sequence[Value]) -> Value:
    (x,) = inputs
    return apply(g, "Less", [apply(g, "Abs", [x], x.dtype), number(x, np.inf)], np.bool_)


def _select(g: Graph, _: Any, inputs: Sequence[Value]) -> Value | None:
    which, *cases = inputs
    if which.dtype != np.bool_ or len(cases) != 2:
        return None
    return apply(g, "Where", [which, cases[1], cases[0]], cases[0].dtype)


def _clamp(g: Graph, _: Any, inputs: Sequence[Value]) -> Value:
    lowest, x, highest = inputs
    return apply(g, "Min", [apply(g, "Max", [x, lowest], x.dtype), highest], x.dtype)


def _remainder(g: Graph, _: Any, inputs: Sequence[Value]) -> Value:
    return apply(g, "Mod", inputs, inputs[0].dtype, fmod=1)


def _round(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Value | None:
    to_even = int(eqn.params["rounding_method"]) == 1
    return apply(g, "Round", inputs, inputs[0].dtype) if to_even else None


RULES: Mapping[str, Rule] = MappingProxyType({
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_UNCHANGED, _unchanged),
    "clamp": _clamp,
    "convert_element_type": _cast,
    "erfc": _composed(("Erf", ""), ("Sub", "1^")),
    "exp2": _composed(("Pow", "2^")),
    "expm1": _composed(("Exp", ""), ("Sub", "1")),
    "integer_pow": _integer_pow,
    "is_finite": _is_finite,
    "log1p": _composed(("Add", "1"), ("Log", "")),
    "ne": _not_equal,
    "rem": _remainder,
    "round": _round,
    "rsqrt": _composed(("Sqrt", ""), ("Reciprocal", "")),
    "select_n": _select,
    "square": _composed(("Mul", "x")),
})  # fmt: skip
"""The rule of each elementwise primitive; a rule returns None for a form that ONNX lacks."""
