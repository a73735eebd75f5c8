"""A traced program as an ONNX graph: constants are computed here, everything else becomes nodes."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from resfit.errors import ExportError
from resfit.export.onnx import elementwise, layers, shapes
from resfit.export.onnx.elementwise import Rule
from resfit.export.onnx.graph import Graph, Value, constant, identity, is_key

RULES: Mapping[str, Rule] = {**elementwise.RULES, **shapes.RULES, **layers.RULES}
_PROGRAMS = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # parameters that hold the program of a call


def convert(g: Graph, program: Any, inputs: Sequence[Value]) -> list[Value]:
    """Append the nodes of a program to a graph and return its results.

    Args:
      g: the graph.
      program: a closed jaxpr.
      inputs: the values of its arguments; constants are computed where nothing else is needed.

    Raises:
      ExportError: for a primitive, or a form of one, that has no rule.
    """
    return _run(g, program.jaxpr, [constant(const) for const in program.consts], inputs)


def _run(g: Graph, jaxpr: Any, consts: Sequence[Value], inputs: Sequence[Value]) -> list[Value]:
    known: dict[Any, Value] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

    def value(atom: Any) -> Value:
        if not isinstance(atom, core.Literal):
            return known[atom]
        aval: Any = atom.aval
        return constant(np.asarray(atom.val, aval.dtype))  # the value can be a number of Python

    for eqn in jaxpr.eqns:
        found = _equation(g, eqn, [value(atom) for atom in eqn.invars])
        known.update(zip(eqn.outvars, found, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _equation(g: Graph, eqn: Any, inputs: Sequence[Value]) -> Sequence[Value]:
    name = eqn.primitive.name
    if name == "scan":
        return _scan(g, eqn, inputs)
    if name == "cond" and inputs[0].array is not None:
        which = int(np.clip(int(inputs[0].array), 0, len(eqn.params["branches"]) - 1))
        return _call(g, eqn.params["branches"][which], inputs[1:])
    inner = next((eqn.params[key] for key in _PROGRAMS if key in eqn.params), None)
    if inner is not None and name != "while":
        return _call(g, inner, inputs)
    if (folded := _folded(eqn, inputs)) is not None:
        return folded
    found = RULES[name](g, eqn, inputs) if name in RULES else None
    if found is None:
        raise ExportError(
            f"The network uses jax.lax.{name} with {_shown(eqn)}, for which the writer of ONNX files has no operation. "
            "Expected convolutions, dense layers, pooling, reductions, slices and elementwise functions. Write that "
            "part with other functions, or export a program of JAX: a path that ends in '.npz'."
        )
    return found if isinstance(found, list) else [found]


def _call(g: Graph, inner: Any, inputs: Sequence[Value]) -> list[Value]:
    """Append the nodes of a program inside of another one, with its constants or without any."""
    return convert(g, inner, inputs) if hasattr(inner, "consts") else _run(g, inner, [], inputs)


def _shown(eqn: Any) -> str:
    avals = ", ".join(atom.aval.str_short() for atom in eqn.invars)
    params = ", ".join(f"{key}={value}" for key, value in eqn.params.items() if value not in (None, (), False))
    return f"({avals}; {params})"[:300]


def _folded(eqn: Any, inputs: Sequence[Value]) -> list[Value] | None:
    """Return the results of a primitive that reads constants only, or None."""
    if any(value.array is None for value in inputs) or eqn.primitive.name in ("broadcast_in_dim", "dim_as_value"):
        return None
    name = eqn.primitive.name
    arrays: list[Any] = [value.array for value in inputs]
    if name in elementwise.RULES:
        whole = [array for array in arrays if array.ndim]  # the stored sizes: a repeated axis stays one entry
        sizes = np.broadcast_shapes(*(array.shape for array in whole))
        arrays = [np.broadcast_to(array, sizes) if array.ndim else array for array in arrays]
    elif all(_is_known(value.shape) for value in inputs) and all(_is_known(out.aval.shape) for out in eqn.outvars):
        arrays = [
            array if is_key(array) else np.broadcast_to(array, value.shape)
            for array, value in zip(arrays, inputs, strict=True)
        ]
    else:
        return None
    typed = [_as_traced(array, atom.aval) for array, atom in zip(arrays, eqn.invars, strict=True)]
    found = eqn.primitive.bind(*typed, **eqn.params)
    labels = [value.label for value in inputs if value.label]
    results = found if eqn.primitive.multiple_results else [found]
    return [
        constant(array, labels[0] if len(labels) == 1 else "")._replace(shape=tuple(out.aval.shape))
        for array, out in zip(results, eqn.outvars, strict=True)
    ]


def _as_traced(array: Any, aval: Any) -> Any:
    """Return a constant in the dtype of the program, which can be half precision."""
    return array if is_key(array) else jax.numpy.asarray(array, aval.dtype)


def _is_known(shape: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for size in shape)


def _scan(g: Graph, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """Return the results of a loop of known length, with its body once for each turn.

    The parameters that count constants and carried values differ between versions of JAX. Only values that the loop
    slices or stacks have one axis less in the body.
    """
    length, inner = eqn.params["length"], eqn.params["jaxpr"]
    body = getattr(inner, "jaxpr", inner)
    whole, carried = (
        sum(len(atom.aval.shape) == len(own.aval.shape) for atom, own in zip(outer, inside, strict=True))
        for outer, inside in ((eqn.invars, body.invars), (eqn.outvars, body.outvars))
    )
    consts, carry, slices = inputs[: whole - carried], inputs[whole - carried : whole], inputs[whole:]
    turns: list[Sequence[Value]] = [()] * length
    for i in reversed(range(length)) if eqn.params["reverse"] else range(length):
        found = _call(g, inner, [*consts, *carry, *(_entry(g, value, i) for value in slices)])
        carry, turns[i] = found[:carried], found[carried:]
    return [*carry, *(_stacked(g, parts) for parts in zip(*turns, strict=True))]


def _entry(g: Graph, value: Value, i: int) -> Value:
    if value.array is not None:
        return constant(g.full(value).array[i], value.label and f"{value.label}.{i}")  # type: ignore[index]
    value = g.full(value)
    rest = tuple(axis - (axis > 0) for axis in value.order if axis)
    which = g.constant(np.array(i, np.int64))
    return g.add(
        "Gather", [g.stored(value, value.order), which], value.shape[1:], value.dtype, rest, axis=value.order.index(0)
    )


def _stacked(g: Graph, parts: Sequence[Value]) -> Value:
    shape = (len(parts), *parts[0].shape)
    if all(part.array is not None for part in parts) and _is_known(shape):
        return constant(np.stack([g.full(part).array for part in parts]))  # type: ignore[misc]
    first = g.constant(np.array([0], np.int64))
    names = [g.raw("Unsqueeze", g.stored(g.full(part)), first) for part in parts]
    return g.add("Concat", names, shape, parts[0].dtype, identity(len(shape)), axis=0)
