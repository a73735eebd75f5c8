"""Updates that are not finite, skipped and counted."""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from resfit.errors import CompileError


def skip_non_finite(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer that leaves out every update with NaN or an infinite value in its gradients, however many they are.

    That is `optax.apply_if_finite` without an end. `Model` goes further where an optimizer is wrapped so, by this
    function or by optax's: a skipped step also leaves statistics, averages and the epoch's metrics as they were, each
    epoch's log holds the number of steps skipped so far as `skipped_steps`, and an epoch in which every step was
    skipped raises `NonFiniteLossError`. The step counter, and with it a schedule, goes on.

    Args:
      optimizer: any optax transformation. Its learning rate stays settable.

    Raises:
      CompileError: for anything else.

    Example:
      >>> from resfit import optimizers
      >>> optimizer = skip_non_finite(optimizers.sgd(0.1))
      >>> params = {"kernel": jnp.ones((1, 2))}
      >>> gradients = {"kernel": jnp.array([[1.0, jnp.nan]])}
      >>> updates, state = optimizer.update(gradients, optimizer.init(params), params)
      >>> updates["kernel"], int(state.total_notfinite)
      (Array([[0., 0.]], dtype=float32), 1)
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise CompileError(
            f"skip_non_finite got {optimizer!r} to wrap. Expected an optimizer that is built, such as "
            "resfit.optimizers.sgd(0.1)."
        )
    wrapped: optax.GradientTransformation = optax.apply_if_finite(optimizer, np.iinfo(np.int32).max)
    return wrapped


class Skips(NamedTuple):
    """Which leaves of an optimizer's state tell of skipped updates.

    Attributes:
      finite: () bool, whether the last update was finite.
      in_a_row: () int32, skipped since the last one that was not.
      total: () int32, skipped so far.
    """

    finite: int
    in_a_row: int
    total: int


def skips(state: Any) -> Skips | None:
    """Where an optimizer's state tells of skipped updates; None where none are skipped.

    Example:
      >>> from resfit import optimizers
      >>> skips(skip_non_finite(optimizers.sgd(0.1)).init({"kernel": jnp.ones((2, 2))}))
      Skips(finite=1, in_a_row=0, total=2)
    """
    leaves, tree = jax.tree.flatten(state)
    numbered = jax.tree.unflatten(tree, range(len(leaves)))
    for node in jax.tree.leaves(numbered, is_leaf=lambda node: isinstance(node, optax.ApplyIfFiniteState)):
        if isinstance(node, optax.ApplyIfFiniteState):
            return Skips(node.last_finite, node.notfinite_count, node.total_notfinite)
    return None
