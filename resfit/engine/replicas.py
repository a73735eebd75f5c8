"""Devices that each run the step on a part of the batch: what they sum, gather and average, over a mapped axis."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from resfit.engine.modes import Plan


def total(tree: Any, axis: str | None) -> Any:
    """The sums over all parts; without an axis, the tree itself."""
    return tree if axis is None else lax.psum(tree, axis)


def gathered(tree: Any, axis: str | None) -> Any:
    """The rows of all parts, one part after another; without an axis, the tree itself."""
    return tree if axis is None else lax.all_gather(tree, axis, tiled=True)


def averaged(plan: Plan, module: nnx.Module, carried: tuple[jax.Array, ...], axis: str) -> tuple[jax.Array, ...]:
    """Statistics and other state that each part has moved, made one again.

    Running means become the mean over the parts. Running variances become what they would be had the batch's variance
    been taken over all parts together: the mean of E[x^2] less the square of the mean of E[x]. The average of the
    variances alone would lose how far the means lie apart. Anything else that is a float is averaged; counters are
    alike in all parts.

    Args:
      plan: of the module.
      module: after its call in training.
      carried: its carried arrays, in the plan's order.
      axis: over which the batch is split.
    """
    norms = {path: part for path, part in nnx.iter_modules(module) if isinstance(part, nnx.BatchNorm)}
    slots = [slot for slot in plan.slots if slot.kind == "carried"]
    new = {slot.path: value for slot, value in zip(slots, carried, strict=True)}

    def one(path: tuple[Any, ...], value: jax.Array) -> jax.Array:
        parent, name = path[:-1], path[-1]
        norm = norms.get(parent)
        if (norm is not None and norm.axis_name is not None) or not jnp.issubdtype(value.dtype, jnp.floating):
            return value  # a norm with an axis has seen all parts
        mean: jax.Array = lax.pmean(value, axis)
        moved = 0.0 if norm is None else 1 - norm.momentum
        if name != "var" or not moved:
            return mean
        means = new[*parent, "mean"]
        apart = (means - lax.pmean(means, axis)) / moved  # the part's own mean, less the mean of all
        variance: jax.Array = mean + moved * lax.pmean(jnp.square(apart), axis)
        return variance

    return tuple(one(slot.path, new[slot.path]) for slot in slots)
