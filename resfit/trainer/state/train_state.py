"""The state of training: its named parts, and the flat form in which a compiled step takes and returns it.

A step takes the flat form apart first and makes it again last. `RunState` keeps it between steps. A program takes the
flat form because its digest covers the paths of the arguments, and checkpoints of earlier versions hold such digests.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from resfit._utils.jax_switches import implicit_promotion
from resfit.errors import CompileError, NotCompiledError
from resfit.optimizers import index_of_rate, skips
from resfit.optimizers.adapted import explained
from resfit.optimizers.evaluation import (
    at,
    check_averages,
    check_order,
    decisive,
    evaluation_params,
    needs_gradients,
    part_of,
    restarted,
)
from resfit.optimizers.parts import tied_names
from resfit.trainer.graph.module_plan import ModulePlan
from resfit.trainer.graph.slots import Slot

Leaves = tuple[jax.Array, ...]


class ModelArrays(NamedTuple):
    """The arrays of a module that evaluation and prediction read.

    Attributes:
      params: trained parameters, in the order of `StateLayout.params`.
      carried: running statistics and other state that is not trained, in the order of `StateLayout.carried`.
    """

    params: Leaves
    carried: Leaves


class TrainState(NamedTuple):
    """Everything that a training step reads and updates.

    Attributes:
      params: see `ModelArrays`.
      carried: see `ModelArrays`.
      averages: running averages of `params` and `carried`, in this order; empty without `ema`.
      optimizer_state: the leaves of optax's state, of the structure `StateLayout.optimizer_tree`.
      span: (4,) int32, see `ScheduleSpan`.
      step: () int32, the updates since `compile`.
    """

    params: Leaves
    carried: Leaves
    averages: Leaves
    optimizer_state: Leaves
    span: jax.Array
    step: jax.Array

    @property
    def visible(self) -> Leaves:
        """The arrays that the module holds: `params` and `carried`."""
        return (*self.params, *self.carried)


class ScheduleSpan(NamedTuple):
    """The steps over which a named schedule stretches.

    Attributes:
      begin: the step at which the schedule begins.
      steps: the length of the schedule.
      steps_per_epoch: the steps of one epoch.
      rate_factor: factor of all learning rates of a schedule.
    """

    begin: int = 0
    steps: int = 0
    steps_per_epoch: int = 0
    rate_factor: float = 1.0

    def packed(self) -> np.ndarray:
        """Return the array that a state holds, (4,) int32; the factor is the bits of a float32."""
        factor = np.float32(self.rate_factor).view(np.int32)
        return np.array([self.begin, self.steps, self.steps_per_epoch, factor], np.int32)

    @classmethod
    def unpacked(cls, array: Any) -> Self:
        """Return the span that an array holds. Waits for the device."""
        begin, steps, steps_per_epoch, factor = np.asarray(array)
        return cls(int(begin), int(steps), int(steps_per_epoch), float(factor.view(np.float32)))


def rate_factor(span: jax.Array) -> jax.Array:
    """Return the factor of a packed span inside a step."""
    return jax.lax.bitcast_convert_type(span[3], jnp.float32)


class StateLayout:
    """The order of the arrays in a state. Holds no arrays.

    Args:
      plan: of the module.
      params: the parameters, or their shapes and dtypes.
      optimizer: None for a model that is not compiled.
      ema: True if the state holds averages.

    Attributes:
      plan: of the module.
      params: the slots of the parameters.
      carried: the slots of the carried arrays.
      n_params: the number of parameters.
      n_visible: the number of parameters and carried arrays.
      n_model: the number of these and their averages.
      optimizer: see the argument.
      optimizer_tree: the structure of the optimizer's state.
      rate_index: the index of the learning rate in `TrainState.optimizer_state`; None unless there is exactly one that
        can be set.
      scheduled_rate_index: the index of the learning rate that optax computes from a schedule; None unless there is
        exactly one.
      skips: the indices of the counts of skipped updates in `TrainState.optimizer_state`; None if none are skipped.
      decisive: the indices in `TrainState.optimizer_state` of parameters that decide those to evaluate with.
      evaluates_other_params: True if the optimizer decides the parameters to evaluate with, see
        `optimizers.evaluation`.
      needs_gradients: True if the optimizer needs gradients at other parameters, as `optimizers.sam` does.
      n_published: the number of arrays at the beginning of a state that the module holds after `publish`.
      warned: for each kind of step, the plain attributes of which `attributes.watched` has warned.
    """

    def __init__(
        self,
        plan: ModulePlan,
        params: Sequence[Any],
        optimizer: optax.GradientTransformation | None,
        *,
        ema: bool = False,
    ) -> None:
        self.plan = plan
        self.params = tuple(slot for slot in plan.slots if slot.kind == "param")
        self.carried = tuple(slot for slot in plan.slots if slot.kind == "carried")
        self.n_params = len(self.params)
        self.n_visible = self.n_params + len(self.carried)
        self.n_model = 2 * self.n_visible if ema else self.n_visible
        self._averages = ema  # also of a module without variables
        self.optimizer = optax.with_extra_args_support(optimizer) if optimizer is not None else None
        self.warned: defaultdict[str, set[str]] = defaultdict(set)
        self.tied = {
            slot.name: [".".join(map(str, path)) for path in slot.others] for slot in plan.slots if slot.others
        }
        self.optimizer_tree = self._optimizer_tree(params)
        numbered = jax.tree.unflatten(self.optimizer_tree, range(self.optimizer_tree.num_leaves))
        self.rate_index, self.skips = index_of_rate(numbered), skips(numbered)
        self.scheduled_rate_index = index_of_rate(numbered, by_schedule=True)
        self.decisive: tuple[int, ...] = tuple(decisive(numbered))
        self.evaluates_other_params = bool(self.decisive)
        self.needs_gradients = needs_gradients(numbered)
        self.n_published = 0 if self.evaluates_other_params else self.n_visible
        self._evaluation_params = jax.jit(self._to_evaluate)

    @property
    def weight_decay_index(self) -> int | None:
        """The index of the weight decay in the state of an optimizer of `optimizers.resolve.with_weight_decay`."""
        numbered = jax.tree.unflatten(self.optimizer_tree, range(self.optimizer_tree.num_leaves))
        index: int | None = getattr(numbered, "hyperparams", {}).get("weight_decay")
        return index

    def _optimizer_tree(self, params: Sequence[Any]) -> Any:
        if self.optimizer is None:
            return jax.tree.structure(None)
        # A Variable can hold a NumPy array of a dtype that JAX narrows when a step takes it.
        abstract = [jax.ShapeDtypeStruct(p.shape, jax.dtypes.canonicalize_dtype(p.dtype)) for p in params]
        nested = self.nested(abstract)
        with tied_names(self.tied), explained(nested), implicit_promotion():
            return jax.tree.structure(jax.eval_shape(self.optimizer.init, nested))

    def checked(self, optimizer_state: Sequence[Any]) -> Sequence[Any]:
        """Return the initial state of the optimizer.

        Raises:
          CompileError: see `optimizers.evaluation.check_averages` and `check_order`.
        """
        if self.needs_gradients:
            check_order(jax.tree.unflatten(self.optimizer_tree, optimizer_state))
        if self.evaluates_other_params:
            check_averages(jax.tree.unflatten(self.optimizer_tree, optimizer_state))
        return optimizer_state

    def decided_by(self) -> tuple[Any, ...]:
        """Return what decides how a step reads and updates the state, see `by_value`."""
        # The initial state of the optimizer does not: a step reads the learning rate from the state.
        update = None if self.optimizer is None else self.optimizer.update
        return self.plan, update, self.optimizer_tree, self.n_model, self.tied

    @property
    def visible(self) -> tuple[Slot, ...]:
        """The slots of params and carried arrays, in order."""
        return (*self.params, *self.carried)

    @property
    def visible_names(self) -> list[str]:
        """The dotted paths of params and carried arrays, in order."""
        return [slot.name for slot in self.visible]

    # --- the flat form ------------------------------------------------------------------------------------------------

    def flatten(self, state: TrainState) -> Leaves:
        """Return the arrays of a state in one tuple."""
        return (*state.params, *state.carried, *state.averages, *state.optimizer_state, state.span, state.step)

    def unflatten(self, leaves: Sequence[Any]) -> TrainState:
        """Return the state whose arrays are in one tuple."""
        params, carried, averages, (*optimizer_state, span, step) = _cut(
            leaves, self.n_params, self.n_visible, self.n_model
        )
        return TrainState(params, carried, averages, tuple(optimizer_state), span, step)

    def unflatten_model(self, leaves: Sequence[Any]) -> ModelArrays:
        """Return the params and carried arrays that are in one tuple."""
        return ModelArrays(*_cut(leaves, self.n_params))

    def chosen(self, leaves: Leaves, weights: str) -> Leaves:
        """Return the params and carried arrays of a flat state to evaluate with.

        Args:
          leaves: the state.
          weights: "raw": see `evaluated`; "ema": averaged, in the dtypes of the trained ones.

        Raises:
          CompileError: if there are no averages, or `weights` has another value.
        """
        state = self.unflatten(leaves)
        if weights == "raw":
            return self.evaluated(state)
        if weights != "ema":
            raise CompileError(f"Got weights={weights!r}. Expected weights to be 'raw' or 'ema'.")
        if not self._averages:
            raise CompileError(
                "Got weights='ema', and the model has no averaged weights. Compile with a decay, as in "
                "compile(ema=0.999)."
            )
        pairs = zip(state.averages, state.visible, strict=True)
        return tuple(average if average.dtype == raw.dtype else average.astype(raw.dtype) for average, raw in pairs)

    def evaluated(self, state: TrainState) -> Leaves:
        """Return the params and carried arrays to evaluate with: as trained, unless the optimizer decides them."""
        if not self.evaluates_other_params:
            return state.visible
        return *self._evaluation_params(state.params, state.optimizer_state), *state.carried

    def _to_evaluate(self, params: Leaves, optimizer_state: Leaves) -> Leaves:
        tree = jax.tree.unflatten(self.optimizer_tree, optimizer_state)
        with implicit_promotion():
            return self.unnested(evaluation_params(tree, self.nested(params)))

    def with_params(self, state: TrainState, new: Sequence[Any]) -> TrainState:
        """Return the state with other parameters.

        Args:
          state: before.
          new: the parameters, also those to evaluate with; None for each one that stays.
        """
        params = tuple(old if value is None else value for old, value in zip(state.params, new, strict=True))
        if not self.evaluates_other_params:
            return state._replace(params=params)
        tree = restarted(jax.tree.unflatten(self.optimizer_tree, state.optimizer_state), self.nested(new))
        return state._replace(params=params, optimizer_state=tuple(jax.tree.leaves(tree)))

    # --- the optimizer ------------------------------------------------------------------------------------------------

    def nested(self, params: Iterable[Any]) -> dict[str, Any]:
        """Return the parameters as a nested dict with string keys, which optimizers and the user's masks see."""
        tree: dict[str, Any] = {}
        for slot, value in zip(self.params, params, strict=True):
            node = tree
            for key in slot.path[:-1]:
                node = node.setdefault(str(key), {})
            node[str(slot.path[-1])] = value
        return tree

    def unnested(self, tree: dict[str, Any]) -> Leaves:
        """Return the values of a dict that `nested` returned, in order."""
        leaves = []
        for slot in self.params:
            node: Any = tree
            for key in slot.path:
                node = node[str(key)]
            leaves.append(node)
        return tuple(leaves)

    def update(
        self, state: TrainState, gradients: Leaves, loss: jax.Array, gradients_at: Callable[[Leaves], Leaves]
    ) -> TrainState:
        """Return the state after one update by the optimizer. Dtypes stay.

        Args:
          state: before.
          gradients: of the loss.
          loss: of the batch.
          gradients_at: params -> gradients of the same batch there, for optimizers that need them.
        """
        if self.optimizer is None:
            raise NotCompiledError("The model was not compiled. Call model.compile(...) before training.")
        params, optimizer_state = state.params, jax.tree.unflatten(self.optimizer_tree, state.optimizer_state)
        tree, more = self.nested(params), dict[str, Any](value=loss)
        if self.needs_gradients:
            more["grad_fn"] = lambda part, _: part_of(self.nested(gradients_at(self.unnested(at(tree, part)))), part)
        with tied_names(self.tied), explained(tree), implicit_promotion():
            updates, optimizer_state = self.optimizer.update(self.nested(gradients), optimizer_state, tree, **more)
            if jax.tree.structure(optimizer_state) != self.optimizer_tree:
                raise CompileError(
                    "The state of the optimizer changed its structure in an update, as that of optax.monitor does. "
                    "Expected the structure of its init. Measure in a metric or a callback instead."
                )
            pairs = zip(params, self.unnested(updates), strict=True)
            params = tuple((param + change).astype(param.dtype) for param, change in pairs)
        return state._replace(params=params, optimizer_state=tuple(jax.tree.leaves(optimizer_state)))


def _cut(leaves: Sequence[Any], *ends: int) -> list[tuple[Any, ...]]:
    """Return the parts of a sequence that end at these indices, and the remainder."""
    return [tuple(leaves[start:stop]) for start, stop in zip((0, *ends), (*ends, None), strict=True)]


def average_of(array: Any) -> Any:
    """Return an array as the first value of its average: float32 for bfloat16 and float16.

    These dtypes would round the small share of a new value away.
    """
    narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return array.astype(np.float32) if narrow else array
