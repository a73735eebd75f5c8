"""Rematerialisation: what a part of a network computed is computed again for its gradient, instead of being kept."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from flax import nnx

PARTS = ("block", "stage")  # what a `ResNetSpec` can name

Module = TypeVar("Module", bound=nnx.Module)


def recomputed(call: Callable[[Module, jax.Array], jax.Array], module: Module, x: jax.Array) -> jax.Array:
    """Returns call(module, x), of which the gradient keeps the input alone.

    The arithmetic is that of call(module, x), in forward and backward pass alike; statistics and random counters move
    once. By way of pure arrays and `jax.checkpoint`, which all versions and modes of NNX understand. Only the Variables
    that the call changes are assigned: the others stay the arrays they were, which is how a trainer sees what a step
    rewrote.

    Args:
        call: what to do with a copy of the module.
        module: whose Variables the call may change.
        x: the part's input.
    """
    graph, state = nnx.split(module)
    given = _arrays(state)

    def run(arrays: Mapping[Any, Any], x: jax.Array) -> tuple[jax.Array, Any]:
        copy = nnx.merge(graph, nnx.from_flat_state(arrays.items()))
        output = call(copy, x)
        after = nnx.state(copy)
        now = _arrays(after)
        changed = [(path, leaf) for path, leaf in nnx.to_flat_state(after) if now[path] is not arrays.get(path)]
        return output, nnx.from_flat_state(changed)

    output: jax.Array
    output, changed = jax.checkpoint(run)(given, x)
    nnx.update(module, changed)
    return output


def _arrays(state: Any) -> dict[Any, Any]:
    return {
        path: leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf
        for path, leaf in nnx.to_flat_state(state)
    }
