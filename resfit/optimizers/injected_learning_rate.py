"""The learning rate in the state of an optimizer."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

LearningRate = float | Callable[[Any], Any]
"""A number or a schedule (step -> number)."""


def with_rate(
    factory: Callable[..., optax.GradientTransformation],
    rate: LearningRate,
    weight_decay: float | jax.Array | None = None,
) -> optax.GradientTransformation:
    """Return the optimizer of a factory, with its learning rate as a float32 array in the state.

    Args:
      factory: a function learning rate -> optimizer; with a weight decay, (learning rate, weight decay) -> optimizer.
      rate: the learning rate.
      weight_decay: a number; or an array, which is also kept in the state.
    """
    arrays = {"learning_rate": rate if callable(rate) else jnp.asarray(rate, jnp.float32)}
    make = factory
    if isinstance(weight_decay, jax.Array):
        arrays["weight_decay"] = weight_decay
    elif weight_decay is not None:
        make = lambda learning_rate: factory(learning_rate, weight_decay)  # noqa: E731
    # optax follows a schedule that is passed to the optimizer, at any place in a chain.
    inject = optax.inject_hyperparams(make, hyperparam_dtype=jnp.float32)
    transformation: optax.GradientTransformation = inject(**arrays)
    return transformation


def index_of_rate(state: Any, *, by_schedule: bool = False, name: str = "learning_rate") -> int | None:
    """Return the number of the leaf that holds the learning rate, or None if there is not exactly one.

    Args:
      state: of an optimizer.
      by_schedule: False for a learning rate that can be set; True for one that optax computes from a schedule at every
        update, which can be read.
      name: "learning_rate", or "weight_decay" for a weight decay that was passed as an array.

    Example:
      >>> from resfit.optimizers import sgd
      >>> state = sgd(0.1).init({"kernel": jnp.ones((2, 2))})
      >>> float(jax.tree.leaves(state)[index_of_rate(state)])
      0.10000000149011612
    """
    leaves, tree = jax.tree.flatten(state)
    numbered = jax.tree.unflatten(tree, range(len(leaves)))
    found: list[int] = []

    def injected(node: Any) -> bool:
        return hasattr(node, "hyperparams")

    def visit(node: Any) -> None:
        if injected(node):
            scheduled = name in getattr(node, "hyperparams_states", ())
            if name in node.hyperparams and scheduled == by_schedule:
                found.append(node.hyperparams[name])
            # A nested chain can hold another learning rate.
            functools.reduce(lambda _, child: visit(child), jax.tree.leaves(node.inner_state, is_leaf=injected), None)

    for node in jax.tree.leaves(numbered, is_leaf=injected):
        visit(node)
    return found[0] if len(found) == 1 else None
