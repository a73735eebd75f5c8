"""The training, evaluation and prediction steps: pure functions of arrays. They know no jit and no devices.

A step takes and returns its state in the flat form of `trainer.state.train_state.StateLayout`. Everything static
(graphs, the loss, the functions of the optimizer) is closed over.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from resfit import metrics
from resfit._utils.jax_switches import implicit_promotion
from resfit.augment.aug_mix import COPIES
from resfit.augment.copies import copies_of, repeated
from resfit.augment.pipeline import consistency_of
from resfit.errors import LossError
from resfit.losses import jensen_shannon
from resfit.losses.by_output import LossesByOutput, entries_by_name, is_by_output, total, weighted
from resfit.losses.smoothing import at_step
from resfit.metrics.collection import Summed
from resfit.trainer.device_batch import DeviceBatch, prepared
from resfit.trainer.devices import replicas
from resfit.trainer.graph.attributes import called
from resfit.trainer.graph.explain import explained
from resfit.trainer.norm_modes import warn_if_frozen, warn_if_moving
from resfit.trainer.state.train_state import Leaves, StateLayout, TrainState, rate_factor
from resfit.trainer.supervised import ComputeLoss, of_examples, weighing


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class OutputsShape:
    """The shape of the network's outputs: a static part of a step's result, known once the step is traced.

    Attributes:
      shape: of the outputs for the batch, or for a slice or a device's part of it; None if they are not one array.
      by_output: the name and the shape of each of several outputs.
    """

    shape: tuple[int, ...] | None
    by_output: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @classmethod
    def of(cls, outputs: Any) -> "OutputsShape":
        if hasattr(outputs, "shape"):
            return cls(tuple(outputs.shape))
        several = entries_by_name(outputs) if is_by_output(outputs) else {}
        return cls(None, tuple((name, tuple(one.shape)) for name, one in several.items() if hasattr(one, "shape")))


class Recipe(NamedTuple):
    """The settings of `compile` that the steps read.

    Attributes:
      compute_loss: (module, x, y, *, key, train) -> ((batch,) loss, outputs).
      metrics: the collection whose sums the steps carry.
      preprocess: applied to x in every step; None for nothing.
      augment: (key, x, y) -> (x, y) functions, applied in order to training batches before preprocess.
      schedule: (step, packed `ScheduleSpan`) -> learning rate; None to keep the optimizer's own learning rate.
      rate_index: the index of the learning rate in the optimizer's state.
      ema: decay of the running averages of parameters and carried arrays; None for no averages.
      slices: the number of parts of a batch whose gradients are summed before the one update.
      fused: (function) -> an equal function, applied to the loss before it is differentiated; None for the loss itself.
    """

    compute_loss: ComputeLoss
    metrics: Summed
    preprocess: Callable[[Any], Any] | None
    augment: tuple[Callable[..., tuple[Any, Any]], ...]
    schedule: Callable[[Any, Any], Any] | None
    rate_index: int | None
    ema: float | None
    slices: int = 1
    fused: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None


class Keys(NamedTuple):
    """Independent keys of a step, so that augmentation and dropout never share a mask."""

    module: jax.Array
    loss: jax.Array
    augment: jax.Array


def keys(key: jax.Array, step: jax.Array | None = None) -> Keys:
    """Return the keys of one step of a run; without a step, the keys of evaluation and prediction."""
    key = jax.random.wrap_key_data(key)
    if step is not None:
        key = jax.random.fold_in(key, step)
    return Keys(*(jax.random.fold_in(key, part) for part in range(3)))


class Accumulated(NamedTuple):
    """The sums over the slices of a batch.

    Attributes:
      state: after the calls of the module, which rewrite statistics and maybe parameters. Not updated yet.
      loss: () float32, of the batch.
      gradients: of the loss by the parameters.
      sums: metric sums including the batch.
      shape: of the outputs.
    """

    state: TrainState
    loss: jax.Array
    gradients: Leaves
    sums: Any
    shape: OutputsShape


def train_step(
    layout: StateLayout,
    recipe: Recipe,
    leaves: Leaves,
    sums: Any,
    key: jax.Array,
    batch: DeviceBatch,
    axis: str | None = None,
) -> tuple[Leaves, Any, jax.Array, OutputsShape]:
    """Return the state after one update.

    Args:
      layout: of the state.
      recipe: the parts of the step.
      leaves: the state in its flat form.
      sums: metric sums so far.
      key: of the run. The key of the step is folded in from it and the step counter.
      batch: the examples.
      axis: the mapped axis over which the batch is split, if this step sees a part of it. The results are the same for
        all parts. Each part draws separate random numbers.

    Returns:
      (new state, new metric sums, the batch's loss as () float32, the shape of the outputs).
    """
    before = layout.unflatten(leaves)
    key_of = keys(key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis)), before.step)
    batch = prepared(batch, recipe.augment, recipe.preprocess, key_of.augment)

    def at(state: TrainState) -> Accumulated:
        with at_step(before.step):
            return accumulate_gradients(layout, recipe, state, sums, key_of, batch, axis)

    found = at(before)
    state = apply_schedule(recipe, found.state)
    # An optimizer such as SAM asks for gradients nearby: of the same examples, with the same random numbers.
    nearby = lambda params: at(before._replace(params=params)).gradients  # noqa: E731
    state = layout.update(state, found.gradients, found.loss, nearby)
    state = update_ema(recipe, state)
    state, sums = keep_if_finite(layout, (before, sums), (state, found.sums))
    return layout.flatten(state._replace(step=state.step + 1)), sums, found.loss, found.shape


def accumulate_gradients(
    layout: StateLayout,
    recipe: Recipe,
    state: TrainState,
    sums: Any,
    key_of: Keys,
    batch: DeviceBatch,
    axis: str | None,
) -> Accumulated:
    """Return loss and gradients of a batch, one slice after the other."""
    rows = jax.tree.leaves(batch.x)[0].shape[0]
    count = jnp.float32(rows) if batch.mask is None else batch.mask.sum()
    count = replicas.total(count, axis)
    copies = copies_of(recipe.augment)
    slices = min(recipe.slices, rows // copies)
    loss_of: Callable[..., Any] = functools.partial(_slice_loss, layout, recipe, count, axis)
    gradient_of = jax.value_and_grad(loss_of if recipe.fused is None else recipe.fused(loss_of), has_aux=True)
    total: Any = None  # (loss, gradients) of the slices so far
    for i in range(slices):
        part, part_keys = _slice(batch, key_of, i, slices, copies)
        if total is not None:
            # One slice after the other, or the compiler may hold the activations of all of them at once.
            part, total = jax.lax.optimization_barrier((part, total))
        (loss, (carried, rewritten, found, shape)), gradients = gradient_of(
            state.params, state.carried, part, part_keys
        )
        # A layer that rewrites its own parameters in the call (spectral norm) is updated from what it wrote.
        params = tuple(rewritten.get(j, param) for j, param in enumerate(state.params))
        state = state._replace(params=params, carried=carried)
        total = (loss, gradients) if total is None else jax.tree.map(jnp.add, total, (loss, gradients))
        sums = sums.merge(found)
    loss, gradients = replicas.total(total, axis)
    return Accumulated(state, loss, gradients, sums, shape)


def _slice(batch: DeviceBatch, key_of: Keys, i: int, slices: int, copies: int) -> tuple[DeviceBatch, Keys]:
    """Return one of the slices of a batch, and its keys. The copies of an example stay together."""
    if slices == 1:
        return batch, key_of

    def cut(leaf: jax.Array) -> jax.Array:
        # Every so many-th row: if the batch is split over devices, each device keeps rows of every slice.
        if copies == 1:
            return jax.lax.slice_in_dim(leaf, i, None, slices)
        return leaf.reshape(-1, copies, *leaf.shape[1:])[i::slices].reshape(-1, *leaf.shape[1:])

    return jax.tree.map(cut, batch), Keys(*(jax.random.fold_in(key, i) for key in key_of))


def _slice_loss(
    layout: StateLayout,
    recipe: Recipe,
    count: jax.Array,
    axis: str | None,
    params: Leaves,
    carried: Leaves,
    part: DeviceBatch,
    key_of: Keys,
) -> tuple[jax.Array, Any]:
    """Return the share of a slice in the loss of the batch of `count` examples, and what else its call gives.

    The latter is (new carried arrays, parameters that the module rewrote by number, metric sums, shape of the outputs).
    """
    compute_loss = weighing(recipe.compute_loss, part.weight)
    module, (found, outputs) = called(
        lambda: layout.plan.assemble(params, carried, key_of.module, train=True, part=axis is not None),
        lambda module: compute_loss(module, part.x, part.y, key=key_of.loss, train=True),
        layout.warned["train"],
    )
    each = _per_example(found, part.x)
    new_params, new_carried = layout.plan.read(module)
    rewritten = {i: new for i, (old, new) in enumerate(zip(params, new_params, strict=True)) if new is not old}
    warn_if_frozen(layout, carried, new_carried)
    if axis is not None:
        new_carried = replicas.averaged(layout.plan, module, new_carried, axis)
    new_carried = tuple(
        old if slot.frozen else new for slot, old, new in zip(layout.carried, carried, new_carried, strict=True)
    )
    mask = counted = _mask(part)
    with implicit_promotion():
        if consistency := consistency_of(recipe.augment):
            each, first = _consistent(each, outputs, consistency)
            counted = mask & first
        each = weighted(each, of_examples(part.weight))
        loss = jnp.where(mask, total(each), 0).sum() / count
    seen = replicas.gathered((outputs, part.y, each, counted), axis)
    return loss, (new_carried, rewritten, _merge(recipe, None, *seen), OutputsShape.of(outputs))


def _consistent(each: Any, outputs: Any, consistency: float) -> tuple[jax.Array, jax.Array]:
    """Return the loss of each example in all rows of its copies, and True for the first row, of the image itself."""
    divergence = jensen_shannon(outputs, COPIES)
    return repeated(each[::COPIES] + consistency * divergence, COPIES), jnp.arange(len(each)) % COPIES == 0


def apply_schedule(recipe: Recipe, state: TrainState) -> TrainState:
    """Return the state with the learning rate of this step in the optimizer's state."""
    if recipe.schedule is None or recipe.rate_index is None:
        return state
    leaves = list(state.optimizer_state)
    with explained("The function of the learning rate", state.step):
        rate = recipe.schedule(state.step, state.span) * rate_factor(state.span)
    leaves[recipe.rate_index] = jnp.asarray(rate, leaves[recipe.rate_index].dtype)
    return state._replace(optimizer_state=tuple(leaves))


@implicit_promotion()
def update_ema(recipe: Recipe, state: TrainState) -> TrainState:
    """Return the state with averages that have moved towards the params and carried arrays."""
    if recipe.ema is None:
        return state
    # In the beginning the average forgets faster, or it would remember the initial values for 1 / (1 - decay) steps.
    share = 1 - jnp.minimum(recipe.ema, (1.0 + state.step) / (10.0 + state.step))
    averages = tuple(
        (old + share * (new - old)).astype(old.dtype) if jnp.issubdtype(old.dtype, jnp.inexact) else new
        for old, new in zip(state.averages, state.visible, strict=True)
    )
    return state._replace(averages=averages)


def keep_if_finite(
    layout: StateLayout, before: tuple[TrainState, Any], after: tuple[TrainState, Any]
) -> tuple[TrainState, Any]:
    """Return (state, metric sums) after the step, or statistics, averages and sums before it if its update was skipped.

    The optimizer itself keeps the parameters, see `optimizers.skip_non_finite`.
    """
    state, sums = after
    if layout.skips is None:
        return after
    finite = state.optimizer_state[layout.skips.finite]
    old, new = ((one.carried, one.averages, counted) for one, counted in (before, after))
    carried, averages, sums = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
    return state._replace(carried=carried, averages=averages), sums


def evaluate_step(
    layout: StateLayout,
    recipe: Recipe,
    leaves: Leaves,
    sums: Any,
    key: jax.Array,
    batch: DeviceBatch,
    wrap: Callable[[Any], Any] | None = None,
) -> tuple[Any, jax.Array, OutputsShape]:
    """Return the metric sums after one more batch, the batch's loss, and the shape of the outputs.

    Args:
      layout: of the state.
      recipe: the parts of the step.
      leaves: params and carried arrays in their flat form.
      sums: metric sums so far.
      key: for modules and losses that draw random numbers in evaluation too.
      batch: the examples.
      wrap: module -> the object that the loss calls; None for the module.
    """

    def call(module: Any) -> tuple[Any, Any]:
        x = batch.x if recipe.preprocess is None else recipe.preprocess(batch.x)
        compute_loss = weighing(recipe.compute_loss, batch.weight)
        called = module if wrap is None else wrap(module)
        found, outputs = compute_loss(called, x, batch.y, key=keys(key).loss, train=False)
        return _per_example(found, x), outputs

    each, outputs = _evaluated(layout, leaves, key, call, "evaluate")
    mask = _mask(batch)
    with implicit_promotion():
        each = weighted(each, of_examples(batch.weight))
        loss = jnp.where(mask, total(each), 0).sum() / mask.sum()
    return _merge(recipe, sums, outputs, batch.y, each, mask), loss, OutputsShape.of(outputs)


def predict_step(
    layout: StateLayout,
    preprocess: Callable[[Any], Any] | None,
    finish: Callable[[Any], Any],
    leaves: Leaves,
    key: jax.Array,
    x: Any,
    call: Callable[[Any, Any], Any] | None = None,
) -> Any:
    """Return finish(module(x)) for one batch, or finish(call(module, x)).

    Args:
      layout: of the state.
      preprocess: applied to x; None for nothing.
      finish: applied to the outputs.
      leaves: params and carried arrays in their flat form.
      key: for modules that draw random numbers in evaluation too.
      x: the inputs.
      call: (module, x) -> outputs; None for the module's own call.
    """

    def predict(module: Any) -> Any:
        with explained(module, x):
            prepared = x if preprocess is None else preprocess(x)
            return module(prepared) if call is None else call(module, prepared)

    return finish(_evaluated(layout, leaves, key, predict, "predict"))


def _evaluated(layout: StateLayout, leaves: Leaves, key: jax.Array, call: Callable[[Any], Any], step: str) -> Any:
    """Return the result of a call of the module in evaluation mode, and warn of statistics that the call moves."""
    params, carried = layout.unflatten_model(leaves)

    def make(carried: Leaves) -> Any:
        return layout.plan.assemble(params, carried, keys(key).module, train=False)

    def after(carried: Leaves) -> Any:
        module = make(carried)
        call(module)
        return module

    module, result = called(lambda: make(carried), call, layout.warned[step])
    warn_if_moving(layout, carried, module, after)
    return result


def _merge(recipe: Recipe, sums: Any, outputs: Any, targets: Any, loss: Any, mask: jax.Array) -> Any:
    """Return the metric sums after a batch; for sums=None, the sums of the batch alone."""
    outputs, loss = jax.lax.stop_gradient((outputs, loss))
    found = metrics.from_step(recipe.metrics, outputs=outputs, targets=targets, loss=loss, mask=mask)
    return found if sums is None else sums.merge(found)


def _mask(batch: DeviceBatch) -> jax.Array:
    return jnp.ones(jax.tree.leaves(batch.x)[0].shape[:1], bool) if batch.mask is None else batch.mask


def _per_example(found: Any, x: Any) -> Any:
    """Return the losses as float32, (batch,), by output if they are; raise if there is not one per example."""
    if isinstance(found, LossesByOutput):
        return found.map(lambda each: _per_example(each, x))
    n = jax.tree.leaves(x)[0].shape[0]
    if found is None:
        raise LossError(f"The loss returned None; expected one value per example, ({n},). Add the missing return.")
    if jnp.shape(found) != (n,):
        remedy = (
            "Leave out the mean: resfit averages, so that weights and partial batches count correctly."
            if jnp.ndim(found) == 0
            else "Average over the other axes."
        )
        raise LossError(f"The loss returned shape {jnp.shape(found)}; expected one value per example, ({n},). {remedy}")
    return jnp.asarray(found, jnp.float32)
