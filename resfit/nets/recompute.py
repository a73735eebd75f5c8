"""Rematerialization: compute the activations of a part again for its gradient instead of keeping them."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from flax import nnx

PARTS = ("block", "stage")  # values of `ResNetSpec.remat`

Module = TypeVar("Module", bound=nnx.Module)


def recomputed(call: Callable[[Module, jax.Array], jax.Array], module: Module, x: jax.Array) -> jax.Array:
    """Return call(module, x) and keep only the input for the gradient.

    Forward and backward pass compute the same values as call(module, x); statistics and random counters change once.
    Pure arrays and `jax.checkpoint` work in every version and mode of NNX. Only the Variables that the call changes are
    assigned, so that a trainer can tell what a step changed.

    Args:
        call: the computation, which receives a copy of the module.
        module: the module. The call may change its Variables.
        x: the input.
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
