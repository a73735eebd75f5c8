"""Skipping and counting of updates that are not finite."""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from resfit._utils.keywords import checked
from resfit.errors import CompileError


@checked("function arguments")
def skip_non_finite(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return an optimizer that skips every update with NaN or an infinite value in its gradients.

    This is `optax.apply_if_finite` without a limit. For an optimizer wrapped by this function or by
    `optax.apply_if_finite`, `Model` does more. A skipped step also keeps statistics, averages and the metrics of the
    epoch. The logs of an epoch hold the number of skipped steps so far as `skipped_steps`. An epoch in which every step
    was skipped raises `NonFiniteLossError`. The step counter, and with it a schedule, still advances.

    Args:
      optimizer: any optax transformation. Its learning rate stays settable.

    Raises:
      CompileError: if `optimizer` is not an optax transformation.

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
            f"skip_non_finite got {optimizer!r}. Expected an optax.GradientTransformation, such as "
            "resfit.optimizers.sgd(0.1)."
        )
    wrapped: optax.GradientTransformation = optax.apply_if_finite(optimizer, np.iinfo(np.int32).max)
    return wrapped


class Skips(NamedTuple):
    """The numbers of the leaves of an optimizer's state that count skipped updates.

    Attributes:
      finite: the leaf that is True if the last update was finite, () bool.
      in_a_row: the leaf with the number of skipped updates since the last finite one, () int32.
      total: the leaf with the number of skipped updates so far, () int32.
    """

    finite: int
    in_a_row: int
    total: int


@checked("function arguments")
def skips(state: Any) -> Skips | None:
    """Return the leaves of an optimizer's state that count skipped updates, or None if it skips none.

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
