"""The learning rate in the state of an optimizer."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resfit._utils.keywords import checked

LearningRate = float | Callable[[Any], Any]
"""A number or a schedule (step -> number)."""


def with_rate(factory: Callable[..., optax.GradientTransformation], rate: LearningRate) -> optax.GradientTransformation:
    """Return the optimizer of a factory, with its learning rate as a float32 array in the state."""
    # optax follows a schedule that is passed to the optimizer, at any place in a chain.
    inject = optax.inject_hyperparams(factory, hyperparam_dtype=jnp.float32)
    transformation: optax.GradientTransformation = inject(
        learning_rate=rate if callable(rate) else jnp.asarray(rate, jnp.float32)
    )
    return transformation


@checked("function arguments")
def index_of_rate(state: Any, *, by_schedule: bool = False) -> int | None:
    """Return the number of the leaf that holds the learning rate, or None if there is not exactly one.

    Args:
      state: of an optimizer.
      by_schedule: False for a learning rate that can be set; True for one that optax computes from a schedule at every
        update, which can be read.

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
            scheduled = "learning_rate" in getattr(node, "hyperparams_states", ())
            if "learning_rate" in node.hyperparams and scheduled == by_schedule:
                found.append(node.hyperparams["learning_rate"])
            # A nested chain can hold another learning rate.
            functools.reduce(lambda _, child: visit(child), jax.tree.leaves(node.inner_state, is_leaf=injected), None)

    for node in jax.tree.leaves(numbered, is_leaf=injected):
        visit(node)
    return found[0] if len(found) == 1 else None
