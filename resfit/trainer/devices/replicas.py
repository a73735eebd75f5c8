"""Devices that each run the step on a part of the batch: sums, rows and statistics of all parts, over a mapped axis."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from resfit.nets import moments
from resfit.trainer.graph.module_plan import ModulePlan


def total(tree: Any, axis: str | None) -> Any:
    """Return the sums over all parts; without an axis, the tree itself."""
    return tree if axis is None else lax.psum(tree, axis)


def gathered(tree: Any, axis: str | None) -> Any:
    """Return the rows of all parts, one part after another; without an axis, the tree itself."""
    return tree if axis is None else lax.all_gather(tree, axis, tiled=True)


def averaged(plan: ModulePlan, module: nnx.Module, carried: tuple[jax.Array, ...], axis: str) -> tuple[jax.Array, ...]:
    """Return the statistics and other state after a step, equal on all devices.

    Running means are averaged over the parts. Running variances become those of a batch whose variance was taken over
    all parts together, see `nets.moments`. Other floats are averaged. Counters are equal in all parts.

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
        # A norm with an axis has already seen all parts.
        if jnp.issubdtype(value.dtype, jnp.floating)
        and (slot.path[:-1] not in norms or norms[slot.path[:-1]].axis_name is None)
    }
    variances = {
        (*path, "var"): ((*path, "mean"), 1 - norm.momentum)
        for path, norm in norms.items()
        if (*path, "mean") in own and norm.momentum != 1
    }
    whole = moments.averaged(own, variances, functools.partial(lax.pmean, axis_name=axis))
    return tuple(whole.get(slot.path, value) for slot, value in zip(slots, carried, strict=True))
