"""Abstract calls of a part of a network: outputs and changed variables, without arithmetic."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jax.extend import core

from resfit.testing.findings import Wrong

Convention = Callable[[Any, jax.Array, bool | None], Any]
"""A function (module, images, train) -> output; `train` is None for the module's own mode."""


@dataclass(frozen=True)
class Effect:
    """The effect of a call.

    Attributes:
        output: shape and dtype of the output.
        changed: names of the variables that the call changed.
        made: names of the variables that the call created.
        unused: names of the parameters that the output does not depend on.
    """

    output: jax.ShapeDtypeStruct
    changed: frozenset[str]
    made: frozenset[str]
    unused: frozenset[str]


def abstract(tree: Any) -> Any:
    """Return shapes and dtypes of a tree."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def named(module: nnx.Module, kind: Any = nnx.Variable) -> dict[str, Any]:
    """Return the variables of a kind in a module by name."""
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(module, kind))}


def called(module: nnx.Module, call: Convention, x: jax.ShapeDtypeStruct, train: bool | None) -> Effect:
    """Return the effect of `call(module, x, train)` on a copy of the module.

    Raises:
        Wrong: if the call does not return exactly one array.
    """
    graph, state = nnx.split(module)
    seen: dict[str, frozenset[str]] = {}

    def run(state: Any, x: jax.Array) -> Any:
        copy = nnx.merge(graph, state)
        before = _values(copy)
        output = call(copy, x, train)
        after = _values(copy)
        seen["made"] = frozenset(after.keys() - before.keys())
        seen["changed"] = frozenset(name for name in before if after.get(name) is not before[name])
        return output

    program = jax.make_jaxpr(run)(abstract(state), x)
    if len(program.out_avals) != 1:
        raise Wrong(f"it returns {len(program.out_avals)} arrays. Expected one")
    used = _used(program.jaxpr)
    unused = [
        ".".join(map(str, path))
        for (path, leaf), variable in zip(nnx.to_flat_state(state), program.jaxpr.invars[:-1], strict=True)
        if isinstance(leaf, nnx.Param) and variable not in used
    ]
    (output,) = program.out_avals
    return Effect(jax.ShapeDtypeStruct(output.shape, output.dtype), seen["changed"], seen["made"], frozenset(unused))


def _values(module: nnx.Module) -> Mapping[str, Any]:
    return {name: variable.get_raw_value() for name, variable in named(module).items()}


def _used(program: core.Jaxpr) -> set[core.Var]:
    """Return the variables that the outputs depend on, without looking into inner programs."""
    used = {var for var in program.outvars if isinstance(var, core.Var)}
    for eqn in reversed(program.eqns):
        if not used.isdisjoint(eqn.outvars):
            used |= {var for var in eqn.invars if isinstance(var, core.Var)}
    return used
