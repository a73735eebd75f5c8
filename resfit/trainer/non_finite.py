"""Find the first NaN or infinite value in a training step."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from resfit.nets import probe
from resfit.trainer.device_batch import DeviceBatch, prepared
from resfit.trainer.state.train_state import Leaves, StateLayout
from resfit.trainer.step import Recipe, keys


def first_non_finite(
    layout: StateLayout, recipe: Recipe, leaves: Leaves, key: jax.Array, batch: DeviceBatch
) -> str | None:
    """Run a training step again and return the name of the first value that is not finite; None if all are finite.

    The search follows the order of the step: inputs, parameters, statistics, layer by layer, the loss.

    Args:
      layout: of the leaves.
      recipe: of the step.
      leaves: the state before the step.
      key: the run's.
      batch: the step's.
    """
    key = jax.device_put(key, layout.unflatten(leaves).step.sharding)
    names: list[str] = []

    def run(leaves: Leaves, batch: DeviceBatch) -> list[jax.Array]:
        watch = _Watch()
        _run_step(watch, layout, recipe, leaves, key, batch)
        names[:] = watch.names
        return watch.flags

    flags = jax.device_get(jax.jit(run)(leaves, batch))
    return next((name for name, finite in zip(names, flags, strict=True) if not finite), None)


class _Watch:
    """Names of the floating-point arrays in a traced step, and for each a flag that is True if it is finite."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.flags: list[jax.Array] = []

    def look(self, name: str, value: Any) -> None:
        for leaf in jax.tree.leaves(value):
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                self.names.append(name)
                self.flags.append(jnp.isfinite(leaf).all())

    def look_at_output(self, name: str, output: jax.Array) -> jax.Array:
        self.look(f"the output of the layer {name!r}", output)
        return output


def _run_step(
    watch: _Watch, layout: StateLayout, recipe: Recipe, leaves: Leaves, key: jax.Array, batch: DeviceBatch
) -> None:
    state = layout.unflatten(leaves)
    key_of = keys(key, state.step)
    watch.look("the batch's inputs, as they came", batch.x)
    watch.look("the batch's labels", batch.y)
    watch.look("the batch's sample weights", batch.weight)
    batch = prepared(batch, recipe.augment, recipe.preprocess, key_of.augment)
    watch.look("the batch's inputs after augment and preprocess", batch.x)
    for slot, param in zip(layout.params, state.params, strict=True):
        watch.look(f"the parameter {slot.name!r}, before the step", param)
    for slot, value in zip(layout.carried, state.carried, strict=True):
        watch.look(f"the statistic {slot.name!r}, before the step", value)
    module = layout.plan.assemble(state.params, state.carried, key_of.module, train=True)
    probe.keep_activations(module)
    for path, part in list(nnx.iter_modules(module)):
        if path and callable(part):
            probe.tap_module(part, ".".join(map(str, path)), watch.look_at_output)
    losses, outputs = recipe.compute_loss(module, batch.x, batch.y, key=key_of.loss, train=True)
    watch.look("the network's output", outputs)
    watch.look("the loss", losses)
