"""Devices that each run the step on a part of the batch: what they sum, gather and average, over a mapped axis."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from resfit.trainer.graph.plan import Plan


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
    own = {
        slot.path: value
        for slot, value in zip(slots, carried, strict=True)
        # A norm with an axis has seen all parts.
        if jnp.issubdtype(value.dtype, jnp.floating)
        and (slot.path[:-1] not in norms or norms[slot.path[:-1]].axis_name is None)
    }
    made_one = lax.pmean(own, axis)
    apart = {}  # how far the means of a part lie from those of all, squared
    for path, norm in norms.items():
        mean, moved = (*path, "mean"), 1 - norm.momentum
        if mean in own and moved:
            apart[*path, "var"] = jnp.square(own[mean] - made_one[mean]) / moved  # (1 - m) * ((x - y) / (1 - m))^2
    made_one |= {path: made_one[path] + between for path, between in lax.pmean(apart, axis).items()}
    return tuple(made_one.get(slot.path, value) for slot, value in zip(slots, carried, strict=True))
