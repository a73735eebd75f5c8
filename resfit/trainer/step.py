"""The training, evaluation and prediction steps: pure functions of (state, batch). No jit, no devices.

State is a flat tuple of arrays; see `trainer.state.Layout`. What is static (graphs, the loss, the optimizer's
functions) is closed over.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from resfit import losses, metrics
from resfit.errors import LabelError, LossError
from resfit.metrics.collection import Collection
from resfit.optimizers import skips
from resfit.trainer import replicas
from resfit.trainer.graph.attributes import watched
from resfit.trainer.graph.explain import explained
from resfit.trainer.graph.slots import module_leaves
from resfit.trainer.state import Layout, Leaves, rate_factor

_log = logging.getLogger("resfit")


class DeviceBatch(NamedTuple):
    """A batch inside a step: arrays (batch, ...), or None for labels, weight or mask that were not given."""

    x: Any
    y: Any
    weight: Any
    mask: Any


class ComputeLoss(Protocol):
    """`Model.compute_loss`: one loss per example, (batch,), and the outputs."""

    def __call__(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> tuple[jax.Array, Any]: ...


@dataclasses.dataclass(frozen=True)
class Supervised:
    """`Model.compute_loss` where no subclass overrides it: a loss of (outputs, labels).

    Attributes:
      loss: (outputs, labels) -> (batch,) loss.
    """

    loss: losses.Loss

    def __call__(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        if y is None:
            what = "to train on" if train else "to evaluate on"
            raise LabelError(
                f"There are no labels {what}. Pass y, or data that bring labels, as (x, y); for a loss that needs none "
                "override Model.compute_loss."
            )
        with explained(module, x):
            outputs = losses.at_least_float32(module(x))
        with explained(self.loss, outputs, y):
            return self.loss(outputs, y), outputs


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class OutputsShape:
    """The shape of the network's outputs, as a static part of a step's result: known once the step is traced.

    Attributes:
      shape: of the outputs for the batch, or for a slice or a device's part of it; None if they are no single array.
    """

    shape: tuple[int, ...] | None

    @classmethod
    def of(cls, outputs: Any) -> "OutputsShape":
        return cls(tuple(outputs.shape) if hasattr(outputs, "shape") else None)


class Recipe(NamedTuple):
    """What `compile` decided about the steps.

    Attributes:
      compute_loss: (module, x, y, *, key, train) -> ((batch,) loss, outputs).
      metrics: the collection whose sums the steps carry.
      preprocess: applied to x in every step; None for nothing.
      augment: (key, x, y) -> (x, y) functions applied in order to training batches, before preprocess.
      schedule: (step, span) -> learning rate, see `Layout` for the span; None to leave the optimizer's own rate.
      rate_index: which leaf of the optimizer's state is the learning rate.
      ema: decay of the running average of parameters and statistics; None for no average.
      slices: into how many parts a batch is cut, whose gradients are summed before the one update.
    """

    compute_loss: ComputeLoss
    metrics: Collection
    preprocess: Callable[[Any], Any] | None
    augment: tuple[Callable[..., tuple[Any, Any]], ...]
    schedule: Callable[[Any, Any], Any] | None
    rate_index: int | None
    ema: float | None
    slices: int = 1


class Keys(NamedTuple):
    """The parts of a step's key. Disjoint, so that augmentation and dropout never share a mask."""

    module: jax.Array
    loss: jax.Array
    augment: jax.Array


def keys(key: jax.Array, step: jax.Array | None = None) -> Keys:
    """The keys of one step of a run; without a step, those of evaluation and prediction."""
    key = jax.random.wrap_key_data(key)
    if step is not None:
        key = jax.random.fold_in(key, step)
    return Keys(*(jax.random.fold_in(key, part) for part in range(3)))


def prepared(recipe: Recipe, key: Keys, batch: DeviceBatch) -> tuple[Any, Any]:
    """(x, y) of a training batch, augmented and preprocessed."""
    x, y = batch.x, batch.y
    for i, augment in enumerate(recipe.augment):
        x, y = augment(jax.random.fold_in(key.augment, i), x, y)
    return x if recipe.preprocess is None else recipe.preprocess(x), y


def train_step(
    layout: Layout,
    recipe: Recipe,
    leaves: Leaves,
    sums: Any,
    key: jax.Array,
    batch: DeviceBatch,
    axis: str | None = None,
) -> tuple[Leaves, Any, jax.Array, OutputsShape]:
    """One update.

    Args:
      layout: which leaf is what.
      recipe: what the step does.
      leaves: the state.
      sums: metric sums so far.
      key: the run's key; the step's is folded in from it and the step counter.
      batch: the examples.
      axis: the mapped axis over which the batch is split, if this is to see a part of it; what is returned is the same
        for all parts. Each part draws random numbers of its own.

    Returns:
      (new state, new metric sums, the batch's loss as () float32, the shape of the outputs).
    """
    params, carried, averages, optimizer_state, span, step = layout.split(leaves)
    key_of = keys(key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis)), step)
    x, y = prepared(recipe, key_of, batch)
    whole = DeviceBatch(x, y, batch.weight, batch.mask)
    rows = jax.tree.leaves(x)[0].shape[0]
    count = jnp.float32(rows) if batch.mask is None else batch.mask.sum()
    count = replicas.total(count, axis)
    slices = min(recipe.slices, rows)

    def loss_of(params: Leaves, carried: Leaves, part: DeviceBatch, key_of: Keys) -> tuple[jax.Array, Any]:
        module = layout.plan.assemble(params, carried, key_of.module, train=True, part=axis is not None)
        with watched(module, layout.warned["train"]):
            found, outputs = recipe.compute_loss(module, part.x, part.y, key=key_of.loss, train=True)
        each = _per_example(found, part.x)
        new_params, new_carried = layout.plan.read(module)
        rewritten = {i: new for i, (old, new) in enumerate(zip(params, new_params, strict=True)) if new is not old}
        _warn_if_frozen(layout, carried, new_carried)
        if axis is not None:
            new_carried = replicas.averaged(layout.plan, module, new_carried, axis)
        new_carried = tuple(
            old if slot.frozen else new for slot, old, new in zip(layout.carried, carried, new_carried, strict=True)
        )
        mask = _mask(part, each)
        weighted = each if part.weight is None else each * part.weight
        loss = jnp.where(mask, weighted, 0).sum() / count
        seen = replicas.gathered((outputs, part.y, weighted, mask), axis)
        return loss, (new_carried, rewritten, _merge(recipe, None, *seen), OutputsShape.of(outputs))

    before, merged = (carried, averages, sums), sums
    total: Any = None  # (loss, gradients) of the slices so far
    for i in range(slices):
        part, part_keys = whole, key_of
        if slices > 1:
            # Every so many-th row: where the batch is split over devices, each device keeps rows of every slice.
            part = jax.tree.map(
                functools.partial(jax.lax.slice_in_dim, start_index=i, limit_index=None, stride=slices), whole
            )
            part_keys = Keys(*(jax.random.fold_in(key, i) for key in key_of))
        if total is not None:
            # One slice after the other, or the compiler may hold the activations of all of them at once.
            part, total = jax.lax.optimization_barrier((part, total))
        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (carried, rewritten, found, shape)), gradients = gradient_of(params, carried, part, part_keys)
        # A layer that rewrites its own parameters in the call (spectral norm) is updated from what it wrote.
        params = tuple(rewritten.get(j, param) for j, param in enumerate(params))
        total = (loss, gradients) if total is None else jax.tree.map(jnp.add, total, (loss, gradients))
        merged = merged.merge(found)
    loss, gradients = replicas.total(total, axis)
    if recipe.schedule is not None and recipe.rate_index is not None:
        flat, tree = jax.tree.flatten(optimizer_state)
        rate = recipe.schedule(step, span) * rate_factor(span)
        flat[recipe.rate_index] = jnp.asarray(rate, flat[recipe.rate_index].dtype)
        optimizer_state = jax.tree.unflatten(tree, flat)
    params, optimizer_state = layout.update(gradients, optimizer_state, params, loss)
    if recipe.ema is not None:
        averages = _averaged(averages, (*params, *carried), recipe.ema, step)
    skipping = skips(optimizer_state)
    if skipping is not None:
        finite = jax.tree.leaves(optimizer_state)[skipping.finite]
        after = (carried, averages, merged)
        carried, averages, merged = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
    return layout.join(params, carried, averages, optimizer_state, span, step + 1), merged, loss, shape


def _averaged(averages: Leaves, values: Leaves, decay: float, step: jax.Array) -> Leaves:
    # In the beginning the average forgets faster, or it would remember the initial values for 1 / (1 - decay) steps.
    share = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return tuple(
        (old + share * (new - old)).astype(old.dtype) if jnp.issubdtype(old.dtype, jnp.inexact) else new
        for old, new in zip(averages, values, strict=True)
    )


def evaluate_step(
    layout: Layout, recipe: Recipe, leaves: Leaves, sums: Any, key: jax.Array, batch: DeviceBatch
) -> tuple[Any, jax.Array, OutputsShape]:
    """The metric sums after one more batch, the batch's loss, the shape of the outputs. Changes nothing else.

    Args:
      layout: which leaf is what.
      recipe: what the step does.
      leaves: params and carried arrays.
      sums: metric sums so far.
      key: for modules and losses that draw random numbers in evaluation too.
      batch: the examples.
    """
    module = _evaluation_module(layout, leaves, key)
    x = batch.x if recipe.preprocess is None else recipe.preprocess(batch.x)
    with watched(module, layout.warned["evaluate"]):
        found, outputs = recipe.compute_loss(module, x, batch.y, key=keys(key).loss, train=False)
    _warn_if_moving(layout, leaves[layout.n_params :], module)
    each = _per_example(found, x)
    mask = _mask(batch, each)
    weighted = each if batch.weight is None else each * batch.weight
    loss = jnp.where(mask, weighted, 0).sum() / mask.sum()
    return _merge(recipe, sums, outputs, batch.y, weighted, mask), loss, OutputsShape.of(outputs)


def predict_step(
    layout: Layout,
    preprocess: Callable[[Any], Any] | None,
    finish: Callable[[Any], Any],
    leaves: Leaves,
    key: jax.Array,
    x: Any,
    call: Callable[[Any, Any], Any] | None = None,
) -> Any:
    """What `finish` makes of the module's outputs for one batch, or of what `call` does with module and batch."""
    module: Any = _evaluation_module(layout, leaves, key)
    with explained(module, x), watched(module, layout.warned["predict"]):
        prepared = x if preprocess is None else preprocess(x)
        outputs = module(prepared) if call is None else call(module, prepared)
    _warn_if_moving(layout, leaves[layout.n_params :], module)
    return finish(outputs)


def _evaluation_module(layout: Layout, leaves: Leaves, key: jax.Array) -> Any:
    params, carried = leaves[: layout.n_params], leaves[layout.n_params :]
    return layout.plan.assemble(params, carried, keys(key).module, train=False)


def _merge(recipe: Recipe, sums: Any, outputs: Any, targets: Any, loss: jax.Array, mask: jax.Array) -> Any:
    """What a batch adds to the metric sums; with no sums yet, that alone."""
    outputs, loss = jax.lax.stop_gradient((outputs, loss))
    found = metrics.from_step(recipe.metrics, outputs=outputs, targets=targets, loss=loss, mask=mask)
    return found if sums is None else sums.merge(found)


def _mask(batch: DeviceBatch, each: jax.Array) -> jax.Array:
    return jnp.ones(each.shape, bool) if batch.mask is None else batch.mask


def _per_example(found: Any, x: Any) -> jax.Array:
    n = jax.tree.leaves(x)[0].shape[0]
    if found is None:
        raise LossError(f"The loss returned None; expected one value per example, ({n},). Does it lack a return?")
    if jnp.shape(found) != (n,):
        remedy = (
            "Leave out the mean: resfit averages, so that weights and short batches count rightly."
            if jnp.ndim(found) == 0
            else "Average over the other axes."
        )
        raise LossError(f"The loss returned shape {jnp.shape(found)}; expected one value per example, ({n},). {remedy}")
    return jnp.asarray(found, jnp.float32)


def _warn_if_moving(layout: Layout, before: Leaves, module: Any) -> None:
    """Tells of BatchNorms that go on training in evaluation: each batch would be normalised by itself."""
    now = dict(module_leaves(module))
    for slot, old in zip(layout.carried, before, strict=True):
        leaf = now.get(slot.path)
        if issubclass(slot.type, nnx.BatchStat) and leaf is not None and leaf.get_raw_value() is not old:
            _log.warning(
                "The BatchNorm statistic %r moves in evaluation too: the module runs its norms in training mode "
                "whatever it is told, so what it says of an image depends on the others in its batch. Leave "
                "use_running_average=False and train=True out of __call__, or pass the mode on.", slot.name,
            )  # fmt: skip
            return


def _warn_if_frozen(layout: Layout, before: Leaves, after: Leaves) -> None:
    statistics = [
        (old, new)
        for slot, old, new in zip(layout.carried, before, after, strict=True)
        if issubclass(slot.type, nnx.BatchStat) and not slot.frozen
    ]
    if statistics and all(old is new for old, new in statistics):
        _log.warning(
            "The training step leaves every BatchNorm statistic unchanged: the module runs its norms in evaluation "
            "mode. Pass the mode on inside __call__ or compute_loss (train=train), or use Model.freeze if you mean it."
        )
