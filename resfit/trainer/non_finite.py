"""Finds where a training step first made NaN or an infinite value."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from resfit.nets import probe
from resfit.trainer.graph import plan as modes
from resfit.trainer.state import Leaves, StateLayout
from resfit.trainer.step import DeviceBatch, Recipe, keys, prepared


def first_non_finite(
    layout: StateLayout, recipe: Recipe, leaves: Leaves, key: jax.Array, batch: DeviceBatch
) -> str | None:
    """Goes through a training step again, in its own order: inputs, parameters, statistics, layer by layer, the loss.

    Args:
      layout: which leaf is what.
      recipe: what the step does.
      leaves: the state before the step.
      key: the run's.
      batch: the step's.

    Returns:
      What was the first to hold a value that is not finite, in words; None if nothing does.
    """
    key = jax.device_put(key, layout.unflatten(leaves).step.sharding)
    names: list[str] = []

    def run(leaves: Leaves, batch: DeviceBatch) -> list[jax.Array]:
        flags: list[jax.Array] = []
        names.clear()

        def look(name: str, value: Any) -> None:
            for leaf in jax.tree.leaves(value):
                if jnp.issubdtype(leaf.dtype, jnp.inexact):
                    names.append(name)
                    flags.append(jnp.isfinite(leaf).all())

        params, carried, _, _, _, step = layout.unflatten(leaves)
        key_of = keys(key, step)
        look("the batch's inputs, as they came", batch.x)
        look("the batch's labels", batch.y)
        look("the batch's sample weights", batch.weight)
        x, y = prepared(recipe, key_of, batch)
        look("the batch's inputs after augment and preprocess", x)
        for slot, param in zip(layout.params, params, strict=True):
            look(f"the parameter {slot.name!r}, before the step", param)
        for slot, value in zip(layout.carried, carried, strict=True):
            look(f"the statistic {slot.name!r}, before the step", value)
        module = modes.assemble(layout.plan, params, carried, key_of.module, train=True)

        def change(name: str, output: jax.Array) -> jax.Array:
            look(f"the output of the layer {name!r}", output)
            return output

        probe.keep_activations(module)
        for path, part in list(nnx.iter_modules(module)):
            if path and callable(part):
                probe.tap_module(part, ".".join(map(str, path)), change)
        losses, outputs = recipe.compute_loss(module, x, y, key=key_of.loss, train=True)
        look("the network's output", outputs)
        look("the loss", losses)
        return flags

    flags = jax.device_get(jax.jit(run)(leaves, batch))
    return next((name for name, finite in zip(names, flags, strict=True) if not finite), None)
