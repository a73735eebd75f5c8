"""The parameters to evaluate with, of optimizers that train at other ones."""

from typing import Any

import jax
import jax.numpy as jnp
import optax.contrib

from resfit.errors import CompileError
from resfit.optimizers.adapted import Lookahead

# The state of each such optimizer, and its field with parameters.
_FIELDS: dict[type, str] = {optax.contrib.ScheduleFreeState: "z", optax.contrib.SAMState: "cache", Lookahead: "slow"}


def has_evaluation_params(state: Any) -> bool:
    """Return True if an optimizer's state decides the parameters to evaluate with.

    Example:
      >>> import optax.contrib
      >>> params = {"kernel": jnp.ones(2)}
      >>> optimizers = optax.contrib.schedule_free_sgd(0.1), optax.sgd(0.1)
      >>> [has_evaluation_params(optimizer.init(params)) for optimizer in optimizers]
      [True, False]
    """
    return any(_decides(node) for node in jax.tree.leaves(state, is_leaf=_decides))


def evaluation_params(state: Any, params: Any) -> Any:
    """Return the parameters to evaluate with.

    They are those of `optax.contrib.schedule_free_eval_params`; the slow ones of `optax.lookahead`; and those before
    the adversarial steps of `optax.contrib.sam`.

    Args:
      state: of the optimizer.
      params: the parameters at which the next gradients are computed.
    """
    for node in jax.tree.leaves(state, is_leaf=_decides):
        if _decides(node):
            params = _overlaid(params, _evaluated(node, params))
    return params


def check_averages(state: Any) -> None:
    """Raise CompileError for `optax.contrib.schedule_free` with a b1 that makes its parameters NaN.

    Args:
      state: the first one of an optimizer.
    """
    for node in jax.tree.leaves(state, is_leaf=_decides):
        if isinstance(node, optax.contrib.ScheduleFreeState) and not node.b1 > 0:
            raise CompileError(
                f"optax.contrib.schedule_free got b1={float(node.b1):g}. It divides by b1, so all parameters would "
                "become NaN. Expected b1 above 0, such as 0.9."
            )


def needs_gradients(state: Any) -> bool:
    """Return True if an optimizer needs gradients at other parameters, as `optimizers.sam` does.

    Example:
      >>> from resfit import optimizers
      >>> params = {"kernel": jnp.ones(2)}
      >>> needs_gradients(optimizers.sam(optimizers.sgd(0.1)).init(params))
      True
    """
    return any(_is_sam(node) for node in jax.tree.leaves(state, is_leaf=_is_sam))


def check_order(state: Any) -> None:
    """Raise CompileError for an optimizer around `optimizers.sam` that cannot see the gradients of its second pass.

    Args:
      state: the first one of an optimizer.
    """
    kinds = {optax.MultiStepsState: "optax.MultiSteps", optax.ApplyIfFiniteState: "skip_non_finite"}
    for node in jax.tree.leaves(state, is_leaf=lambda node: type(node) in kinds):
        if type(node) in kinds and needs_gradients(tuple(node)):
            raise CompileError(
                f"The optimizer is {kinds[type(node)]} around sam, and would not see the gradients that sam computes. "
                "Expected sam outermost: resfit.optimizers.sam(resfit.optimizers.skip_non_finite(optimizer)); in place "
                "of MultiSteps, compile(gradient_accumulation_steps=...)."
            )


def at(params: Any, part: Any) -> Any:
    """Return all parameters, with those that an optimizer changed; it can see a part of them.

    Args:
      params: all of them.
      part: the changed ones.
    """
    return _overlaid(params, part)


def part_of(gradients: Any, part: Any) -> Any:
    """Return the gradients of the parameters that an optimizer sees, in its structure."""
    given = dict(jax.tree_util.tree_leaves_with_path(gradients))
    return jax.tree_util.tree_map_with_path(lambda path, _: given[path], part)


def restarted(state: Any, params: Any) -> Any:
    """Return an optimizer's state for which these parameters, which were set, are also those to evaluate with.

    Args:
      state: of the optimizer.
      params: the new parameters; None for each one that stays.
    """

    def restart(node: Any) -> Any:
        if not _decides(node):
            return node
        field = _FIELDS[type(node)]
        replace = getattr(node, "_replace", None) or node.replace  # SAMState of optax before 0.2.6 is no named tuple
        return replace(**{field: _overlaid(getattr(node, field), params)})

    return jax.tree.map(restart, state, is_leaf=_decides)


def decisive(state: Any) -> list[Any]:
    """Return the leaves of an optimizer's state that are parameters, and decide those to evaluate with."""
    nodes = filter(_decides, jax.tree.leaves(state, is_leaf=_decides))
    return [leaf for node in nodes for leaf in jax.tree.leaves(getattr(node, _FIELDS[type(node)]))]


def _is_sam(node: Any) -> bool:
    return type(node) is optax.contrib.SAMState and node.cache is None


def _decides(node: Any) -> bool:
    return type(node) in _FIELDS and getattr(node, _FIELDS[type(node)]) is not None


def _evaluated(node: Any, params: Any) -> Any:
    """Return the evaluation parameters of the part of the parameters that an optimizer trains."""
    own = getattr(node, _FIELDS[type(node)])
    if isinstance(node, Lookahead):
        return own
    given = dict(jax.tree_util.tree_leaves_with_path(params))
    if not given.keys() >= dict(jax.tree_util.tree_leaves_with_path(own)).keys():
        raise CompileError(
            "The optimizer keeps its evaluation parameters in another structure than the parameters. Put a "
            "transformation such as optax.flatten inside of it: optax.contrib.schedule_free(optax.flatten(...), ...)."
        )
    params = jax.tree_util.tree_map_with_path(lambda path, _: given[path], own)
    if isinstance(node, optax.contrib.SAMState):
        return jax.tree.map(lambda now, before: jnp.where(node.steps_since_sync == 0, now, before), params, own)
    averaged = optax.contrib.schedule_free_eval_params(node, params)
    # Equal parameters have this average, and the formula of optax would round it.
    return jax.tree.map(lambda y, z, x: jnp.where(y.astype(z.dtype) == z, y, x.astype(y.dtype)), params, own, averaged)


def _overlaid(tree: Any, part: Any) -> Any:
    """Return the tree with the leaves that the part has too; dtypes stay."""
    new = dict(jax.tree_util.tree_leaves_with_path(part))
    return jax.tree_util.tree_map_with_path(lambda path, old: new[path].astype(old.dtype) if path in new else old, tree)
