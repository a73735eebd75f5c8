"""The state of a run on its devices.

A step donates its input state, so the trainer never holds an array that other code can read. Every array is copied
before the first step. On the way out the arrays are handed to the user's module, and copied again only if training
continues.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import SingleDeviceSharding

from resfit._utils.jax_switches import implicit_promotion
from resfit.backends.program_cache import traced
from resfit.errors import ModuleError
from resfit.optimizers import Skips
from resfit.optimizers.parts import tied_names
from resfit.trainer.graph.freezing import NOTHING_FROZEN, Freeze
from resfit.trainer.graph.module_plan import Convolutions
from resfit.trainer.graph.random_keys import as_key, as_numbers
from resfit.trainer.state.threads import Shared, locked
from resfit.trainer.state.train_state import Leaves, ScheduleSpan, StateLayout, TrainState, average_of
from resfit.trainer.state.user_module import UserModule

_COMPILED_AFTER = 4  # calls of `fit`


class Replicate(Protocol):
    """A function that puts whole arrays on every device of the run; with `copy`, always in new memory."""

    def __call__(self, tree: Any, *, copy: bool = False) -> Any: ...


class RunState(Shared):
    """Everything that changes while a model trains. Other threads can read it while one thread trains.

    Args:
      module: the user's module.
      optimizer: None for a model that is not compiled.
      replicate: puts arrays on the devices of the run.
      freeze: the parts that do not train.
      ema: True to keep averages of params and carried arrays.
      precision: the precision of the steps, see `trainer.graph.module_plan.plan_module`.
      axis: see `trainer.graph.module_plan.plan_module`.
      convolutions: the replacement of XLA's convolutions; None to keep them.
      before: an earlier state of the same module, whose plan serves again if nothing changed.

    Attributes:
      layout: the order of the arrays.
      leaves: the arrays in the flat form in which a step takes and returns them, so that a step costs no conversion.
      precision: see the argument.
      convolutions: see the argument.
      freeze: see the argument.
      epoch: the passes over the data begun since `compile`. With the seed it decides the order of the next pass.
      between_steps: True while `fit` runs. An assignment to a Variable then leaves its average as it is, as a step
        does; otherwise the average starts again at the assigned value.
    """

    def __init__(
        self,
        module: nnx.Module,
        optimizer: optax.GradientTransformation | None,
        replicate: Replicate,
        freeze: Freeze = NOTHING_FROZEN,
        *,
        ema: bool = False,
        precision: str = "float32",
        axis: str | None = None,
        convolutions: Convolutions | None = None,
        before: "RunState | None" = None,
    ) -> None:
        super().__init__()
        self.precision, self.convolutions, self.freeze = precision, convolutions, freeze
        self._replicate, self._ema = replicate, ema
        known = None if before is None else before._module
        self._module: UserModule = UserModule(module, freeze, precision, axis, convolutions, known)
        shared = self._module.share()
        self.layout = StateLayout(self._module.plan, shared.params, optimizer, ema=ema)
        self.leaves = self._initial(shared.params, shared.carried)
        self._begun = 0  # how often training went on from the arrays that the module holds
        self._set: dict[int, float] = {}  # the leaves of the optimizer's state that were set
        self.epoch = 0
        self.between_steps = False
        self._lent = False  # another thread reads the arrays, so the next step copies them
        self._recovered = False

    def _initial(self, params: Sequence[Any], carried: Sequence[Any]) -> Leaves:
        """Return the state before the first step."""
        optimizer_state: Iterable[Any] = ()
        if self.layout.optimizer is not None:
            nested = self.layout.nested(_on_one_device(param) for param in params)
            devices = sorted({device for param in jax.tree.leaves(nested) for device in param.devices()}, key=str)
            init = functools.partial(_initial_optimizer_state, self.layout.optimizer, self.layout.tied)
            optimizer_state = self.layout.checked(traced(jax.jit(init), (nested,), devices).run(nested))
        params, carried = tuple(map(_strong, params)), tuple(map(_strong, carried))
        averages = tuple(map(average_of, (*params, *carried))) if self._ema else ()
        span: Any = ScheduleSpan().packed()
        step: Any = np.zeros((), np.int32)
        state = TrainState(params, carried, averages, tuple(optimizer_state), span, step)
        # Copies of NumPy arrays: on a CPU they would share memory with the module's.
        leaves: list[Any] = [*self.layout.flatten(state)]
        leaves = [np.array(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
        return tuple(self._replicate(leaves))

    @property
    @locked
    def arrays(self) -> TrainState:
        """The arrays by name, on the devices of the run."""
        if self.trains_elsewhere:
            self._lend()
        return self.layout.unflatten(self.leaves)

    @arrays.setter
    def arrays(self, arrays: TrainState) -> None:
        self.leaves = self.layout.flatten(arrays)

    @property
    def keeps_averages(self) -> bool:
        """True if there are averaged weights."""
        return self._ema

    @property
    def module(self) -> nnx.Module:
        """The user's own module; see `publish` for when it is up to date."""
        return self._module.module

    # --- exchange with the module -------------------------------------------------------------------------------------

    @locked
    def check_structure(self) -> None:
        """Raise if the structure of the module changed, see `UserModule.check_structure`."""
        self._module.check_structure()

    @locked
    def check_for_training(self) -> None:
        """Raise also if an attribute of the module has no effect, see `UserModule.check_for_training`."""
        self._module.check_for_training()

    @locked
    def take_from_module(self) -> None:
        """Take over what the user assigned to the Variables of the module since the last exchange.

        Raises:
          ModuleError: if an array has another shape than before.
        """
        assigned = self._module.assigned()
        if not assigned:
            return
        before = self.layout.evaluated(self.arrays)
        visible, averages = list(before), list(self.arrays.averages)
        for i, (slot, old) in enumerate(zip(self.layout.visible, before, strict=True)):
            if slot.path not in assigned:
                continue
            visible[i] = self._taken(slot.name, assigned[slot.path], old)
            # nnx.jit and nnx.update also rebind Variables that they do not change.
            if averages and not self.between_steps and not _equal(visible[i], old):
                averages[i] = average_of(visible[i])
        self._put(visible, averages)
        self._module.share()

    def _taken(self, name: str, value: Any, old: jax.Array) -> Any:
        """Return an assigned value on the devices of the run, in the dtype of the old one."""
        if np.shape(value) != old.shape:
            raise ModuleError(
                f"{name!r} was assigned an array of shape {np.shape(value)}; the model was compiled with {old.shape}. "
                "Assign the same shape, or build a new resfit.Model from the changed module."
            )
        convert = np.array if isinstance(value, np.ndarray) else jnp.asarray
        return self._replicate(convert(value, old.dtype))

    def _put(self, visible: Sequence[Any], averages: Sequence[Any]) -> None:
        model, params = self.layout.unflatten_model(visible), list(visible[: self.layout.n_params])
        if self.layout.evaluates_other_params:
            # The trained parameters stay if the ones to evaluate with were put back.
            now = self.layout.evaluated(self.arrays)[: self.layout.n_params]
            params = [None if _equal(new, old) else new for new, old in zip(params, now, strict=True)]
        state = self.layout.with_params(self.arrays, params)
        self.arrays = state._replace(carried=model.carried, averages=tuple(averages))

    def own(self) -> None:
        """Make every array the trainer's alone, so that a step can donate it. The caller holds the lock."""
        if self._module.shares or self._lent:
            self.take_from_module()
            self._begun += 1
            # For many short calls of `fit`: a program copies 40 arrays in a tenth of the time, and has to be compiled.
            often = self._begun > _COMPILED_AFTER and isinstance(self.leaves[-1].sharding, SingleDeviceSharding)
            self.leaves = _copied(self.leaves) if often else self.copy()
            self._module.part()
            self._lent = False

    def _lend(self) -> None:
        """Keep the present arrays from being donated. A failed step may have taken them already."""
        if any(leaf.is_deleted() for leaf in self.leaves):
            self._recovered |= self._recover()
        self._lent = True

    def copy(self) -> Leaves:
        """Return copies of all arrays."""
        return tuple(self._replicate(list(self.leaves), copy=True))

    @locked
    def visible(self, weights: str = "raw") -> Leaves:
        """Return the current params and carried arrays; "ema": their averages.

        A later step of this thread takes the arrays; a step of another thread leaves them alone.
        """
        self.take_from_module()
        if self.trains_elsewhere:
            self._lend()
        return self.layout.chosen(self.leaves, weights)

    @locked
    def publish(self) -> None:
        """Put the current values into the user's module."""
        if not self._module.shares:
            self._module.publish(self.layout.evaluated(self.arrays))

    @locked
    def own_module(self) -> nnx.Module:
        """Return the user's module with the current values."""
        self.publish()
        return self._module.module

    @locked
    def module_with(self, weights: str) -> nnx.Module:
        """Return the user's module for "raw", or a copy that holds the averages for "ema".

        While another thread trains, return a copy for "raw" too.
        """
        if weights == "raw" and not self.trains_elsewhere:
            return self.own_module()
        return self._module.copy_with(self.visible(weights))

    @locked
    def set_visible(self, arrays: Sequence[Any], averages: Sequence[Any] | None = None) -> None:
        """Assign all params and carried arrays, in the order of `visible`, and their averages, by default equal."""
        new = self._checked(arrays)
        if averages is not None:
            self.visible("ema")  # raises if there are none
        of = new if averages is None else self._checked(averages)
        self._put(self._replicate(new), self._replicate(list(map(average_of, of))) if self._ema else ())
        self._module.part()
        self.publish()

    @locked
    def trained(self) -> list[np.ndarray]:
        """Return copies of all arrays that `set_visible` assigns, except the averages."""
        self.take_from_module()
        return [np.array(leaf) for leaf in (*self.arrays.visible, *map(self.leaf, self.layout.decisive))]

    @locked
    def restore_trained(self, arrays: Sequence[Any]) -> None:
        """Assign a result of `trained`; the averages stay."""
        new, n = self._replicate(list(arrays), copy=True), self.layout.n_visible
        own = dict(enumerate(self.arrays.optimizer_state)) | dict(zip(self.layout.decisive, new[n:], strict=True))
        model = self.layout.unflatten_model(new[:n])
        self.arrays = self.arrays._replace(**model._asdict(), optimizer_state=tuple(own.values()))
        self._module.part()
        self.publish()

    def _checked(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        """Return copies of the arrays in the dtypes of `visible`; raise if their number or shapes differ from it."""
        visible = self.visible()
        shapes = [np.shape(array) for array in arrays]
        if shapes != [leaf.shape for leaf in visible]:
            wrong = [
                f"array {i} has shape {shape}, expected {leaf.shape}"
                for i, (shape, leaf) in enumerate(zip(shapes, visible, strict=False))
                if shape != leaf.shape
            ]
            raise ModuleError(
                f"Got {len(shapes)} arrays for the {len(visible)} of this module{': ' if wrong else ''}"
                f"{'; '.join(wrong[:5])}. Expected what get_weights gives for a network like this one."
            )
        # NumPy's copy: JAX's would compile a program for every shape.
        return [np.array(array, leaf.dtype) for array, leaf in zip(arrays, visible, strict=True)]

    # --- exchange with checkpoints ------------------------------------------------------------------------------------

    def on_host(self) -> list[np.ndarray]:
        """Return copies of all arrays as NumPy, random keys as their numbers. Waits for the device."""
        # Copies: on a CPU the host would otherwise look into memory that the next step writes to.
        return [np.array(leaf) for leaf in jax.device_get([as_numbers(leaf) for leaf in self.leaves])]

    def shapes_on_host(self) -> list[list[int]]:
        """Return the shapes of the arrays of `on_host`."""
        return [list(as_numbers(leaf).shape) for leaf in self.leaves]

    def take_from_host(self, arrays: Sequence[Any]) -> None:
        """Take copies of the arrays of an `on_host`. The next step can donate them.

        Dtypes stay those of this state: earlier versions kept the averages of bfloat16 parameters in bfloat16.
        """
        leaves = [
            as_key(array.astype(as_numbers(leaf).dtype, copy=False), leaf)
            for array, leaf in zip(arrays, self.leaves, strict=True)
        ]
        self.replace(tuple(self._replicate(leaves, copy=True)))

    @locked
    def replace(self, leaves: Leaves) -> None:
        """Take a state that a step returned, while the user's module still holds the one before."""
        self.leaves = leaves
        self._module.part()

    # --- named parts --------------------------------------------------------------------------------------------------

    def rate_index(self) -> int | None:
        """Return the index of the learning rate in the optimizer's state; None unless exactly one can be set."""
        return self.layout.rate_index

    def skips(self) -> Skips | None:
        """Return the indices of the counts of skipped updates in the optimizer's state; None if none are skipped."""
        return self.layout.skips

    def leaf(self, index: int) -> jax.Array:
        """Return a leaf of the optimizer's state."""
        return self.arrays.optimizer_state[index]

    @locked
    def set_leaf(self, index: int, value: float) -> None:
        """Set a leaf of the optimizer's state. Its dtype stays, so that nothing is compiled again."""
        self._set[index] = value
        leaves = list(self.arrays.optimizer_state)
        leaves[index] = self._replicate(np.asarray(value, leaves[index].dtype))
        self.arrays = self.arrays._replace(optimizer_state=tuple(leaves))

    def steps(self) -> int:
        """Return the number of updates since `compile`. Waits for the device."""
        return int(self.arrays.step)

    def span(self) -> ScheduleSpan:
        """Return the span of a named schedule. Waits for the device."""
        return ScheduleSpan.unpacked(self.arrays.span)

    @locked
    def put_span(self, span: ScheduleSpan) -> None:
        """Set the span of a named schedule."""
        self.arrays = self.arrays._replace(span=self._replicate(span.packed()))

    def set_span(self, begin: int, steps: int, steps_per_epoch: int) -> None:
        """Stretch a named schedule over these steps; the factor of its rates becomes 1."""
        self.put_span(ScheduleSpan(begin, steps, steps_per_epoch))

    @property
    def rate_factor(self) -> float:
        """The factor of all learning rates of a schedule. Waits for the device."""
        return self.span().rate_factor

    @rate_factor.setter
    def rate_factor(self, value: float) -> None:
        self.put_span(self.span()._replace(rate_factor=value))

    # --- failures -----------------------------------------------------------------------------------------------------

    @locked
    def recover(self) -> bool:
        """Go back to the arrays that the module holds if a step failed and took the donated state with it.

        Returns:
          True if that was necessary.
        """
        recovered, self._recovered = self._recovered or self._recover(), False
        return recovered

    def _recover(self) -> bool:
        if not self._lost():
            return False
        shared = self._module.share()
        self.leaves = self._initial(shared.params, shared.carried)
        for index, value in self._set.items():
            self.set_leaf(index, value)
        return True

    def _lost(self) -> bool:
        if any(leaf.is_deleted() for leaf in self.leaves):
            return True
        try:
            jax.block_until_ready(self.leaves)
        except jax.errors.JaxRuntimeError:  # an array that the failed step was to return
            return True
        return False


def _initial_optimizer_state(
    optimizer: optax.GradientTransformation, tied: dict[str, list[str]], params: Any
) -> list[Any]:
    """Return the leaves of an optimizer's state: the cache of programs must not hold the user's classes."""
    with tied_names(tied), implicit_promotion():
        return jax.tree.leaves(optimizer.init(params))


@jax.jit
def _copied(leaves: Leaves) -> Leaves:
    return tuple(map(jnp.copy, leaves))


def _equal(a: jax.Array, b: jax.Array) -> bool:
    """Return True if two arrays, each whole on every device, hold the same values. Waits for the device."""
    return np.array_equal(np.asarray(a.addressable_data(0)), np.asarray(b.addressable_data(0)))


def _on_one_device(array: Any) -> jax.Array:
    """Return the array without the mesh of the user, because the steps run outside this mesh."""
    if not isinstance(array, jax.Array) or not array.is_fully_addressable or jax.typeof(array).sharding.mesh.empty:
        return jnp.asarray(array)
    # Given a device instead of a sharding, device_put keeps the mesh.
    moved: jax.Array = jax.device_put(array, jax.sharding.SingleDeviceSharding(min(array.devices(), key=str)))
    return moved


def _strong(array: Any) -> Any:
    """Return the array without JAX's weak type, which a checkpoint cannot keep and which makes another program."""
    return jnp.asarray(array, array.dtype) if isinstance(array, jax.Array) and array.weak_type else array
