"""Assign arrays inside a module, through any container."""

from collections.abc import Mapping
from typing import Any

from flax import nnx
from flax.nnx import graphlib


def assign(module: nnx.Module, values: Mapping[tuple[Any, ...], Any]) -> None:
    """Put arrays at paths of a module.

    A Variable keeps its identity and gets a new value. Lists, dicts and attributes are assigned in place. Tuples and
    other immutable pytrees are rebuilt, and their holder gets the new one.

    Args:
      module: changed.
      values: path, as in `nnx.to_flat_state`, to array. Every path must exist.

    Example:
      >>> module = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> module.scales = nnx.data({("kernel",): (jnp.ones(3), jnp.ones(2))})
      >>> assign(module, {("scales", ("kernel",), 1): jnp.zeros(2)})
      >>> module.scales
      {('kernel',): (Array([1., 1., 1.], dtype=float32), Array([0., 0.], dtype=float32))}
    """
    _assigned(module, values)


def _assigned(node: Any, values: Mapping[tuple[Any, ...], Any]) -> Any:
    """Return the node after the assignment: the same object, or a new one if its type is immutable."""
    if isinstance(node, nnx.Variable):
        node.set_raw_value(values[()])
        return node
    if () in values:
        return values[()]
    inside: dict[Any, dict[tuple[Any, ...], Any]] = {}
    for (key, *rest), value in values.items():
        inside.setdefault(key, {})[tuple(rest)] = value
    container: Any = graphlib.get_node_impl(node)
    children = container.node_dict(node)
    changed = {}
    for key, below in inside.items():
        child = _assigned(children[key], below)
        if child is not children[key]:
            changed[key] = child
    if not changed:
        return node
    if container.set_key is not None:
        for key, child in changed.items():
            container.set_key(node, key, child)
        return node
    nodes, structure = container.flatten(node)
    return container.unflatten([(key, changed.get(key, child)) for key, child in nodes], structure)
