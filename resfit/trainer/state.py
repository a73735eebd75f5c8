"""The state of a run: one flat tuple of arrays, owned by the trainer, and its exchange with the user's module.

A step donates its input state, so the trainer must never hold an array that somebody else may read. Every leaf is
copied before the first step; on the way out the arrays are handed over, and copied again only if training goes on.
"""

import functools
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from resfit.backends.program_cache import traced
from resfit.errors import CompileError, ModuleError, NotCompiledError
from resfit.optimizers import Skips, index_of_rate, skips
from resfit.optimizers.parts import tied_names
from resfit.trainer.graph import plan as modes
from resfit.trainer.graph.containers import assign
from resfit.trainer.graph.outline import Outline
from resfit.trainer.graph.plan import Plan, plan
from resfit.trainer.graph.random_keys import as_key, as_numbers

_log = logging.getLogger("resfit")

Leaves = tuple[jax.Array, ...]


class Replicate(Protocol):
    """Puts arrays whole on every device of the run; copy: in memory of their own, also where they are there already."""

    def __call__(self, tree: Any, *, copy: bool = False) -> Any: ...


class Layout:
    """Which leaf of the flat tuple is what: (params..., carried..., averages of both..., optimizer..., span, step).

    Free of arrays. The averages are there only if `ema`. The span, (4,) int32, is what a named schedule stretches over:
    the step at which it begins, its steps, and the steps of an epoch; and the bits of a float32 by which a schedule's
    rates are multiplied.

    Attributes:
      warned: for each kind of step, the plain attributes of which `attributes.watched` has warned.
    """

    def __init__(
        self, plan: Plan, params: Sequence[Any], optimizer: optax.GradientTransformation | None, *, ema: bool = False
    ) -> None:
        self.plan = plan
        self.param_paths = tuple(slot.path for slot in plan.slots if slot.kind == "param")
        self.n_params = len(self.param_paths)
        self.carried = tuple(slot for slot in plan.slots if slot.kind == "carried")
        self.n_visible = self.n_params + len(self.carried)
        self.n_model = 2 * self.n_visible if ema else self.n_visible  # everything but the optimizer and the step
        self.optimizer = optax.with_extra_args_support(optimizer) if optimizer is not None else None
        self.warned: defaultdict[str, set[str]] = defaultdict(set)
        self.tied = {
            slot.name: [".".join(map(str, path)) for path in slot.others] for slot in plan.slots if slot.others
        }
        self.optimizer_tree: Any = None
        if optimizer is not None:
            # A Variable may hold a NumPy array of a dtype that JAX narrows when it arrives.
            abstract = tuple(jax.ShapeDtypeStruct(p.shape, jax.dtypes.canonicalize_dtype(p.dtype)) for p in params)
            with tied_names(self.tied):
                self.optimizer_tree = jax.tree.structure(jax.eval_shape(optimizer.init, self.nest(abstract)))

    def decided_by(self) -> tuple[Any, ...]:
        """Return what decides how a step reads and updates the leaves, see `by_value`."""
        # Not how the optimizer's state begins: a step has the learning rate from there.
        update = None if self.optimizer is None else self.optimizer.update
        return self.plan, update, self.optimizer_tree, self.n_model, self.tied

    def _trained_by(self) -> optax.GradientTransformationExtraArgs:
        if self.optimizer is None:
            raise NotCompiledError("The model was not compiled. Call model.compile(...) before training.")
        return self.optimizer

    @property
    def visible_names(self) -> list[str]:
        """The dotted paths of the params and carried arrays, in order."""
        return [*self.plan.names("param"), *self.plan.names("carried")]

    def nest(self, params: Sequence[Any]) -> dict[str, Any]:
        """The parameters as a nested dict of plain strings: what optimizers, and the masks of users, see."""
        tree: dict[str, Any] = {}
        for path, value in zip(self.param_paths, params, strict=True):
            node = tree
            for key in path[:-1]:
                node = node.setdefault(str(key), {})
            node[str(path[-1])] = value
        return tree

    def flatten(self, tree: dict[str, Any]) -> Leaves:
        """The inverse of `nest`."""
        leaves = []
        for path in self.param_paths:
            node: Any = tree
            for key in path:
                node = node[str(key)]
            leaves.append(node)
        return tuple(leaves)

    def split(self, leaves: Leaves) -> tuple[Leaves, Leaves, Leaves, Any, jax.Array, jax.Array]:
        """(params, carried, averages, optimizer state, span, step) of a flat tuple."""
        a, b, c = self.n_params, self.n_visible, self.n_model
        optimizer_state = jax.tree.unflatten(self.optimizer_tree, leaves[c:-2])
        return leaves[:a], leaves[a:b], leaves[b:c], optimizer_state, leaves[-2], leaves[-1]

    def update(self, gradients: Leaves, optimizer_state: Any, params: Leaves, loss: jax.Array) -> tuple[Leaves, Any]:
        """(params, optimizer state) after one update. Dtypes stay."""
        tree = self.nest(params)
        with tied_names(self.tied):
            updates, optimizer_state = self._trained_by().update(
                self.nest(gradients), optimizer_state, tree, value=loss
            )
        params = tuple(
            (param + update).astype(param.dtype) for param, update in zip(params, self.flatten(updates), strict=True)
        )
        return params, optimizer_state

    def join(
        self,
        params: Leaves,
        carried: Leaves,
        averages: Leaves,
        optimizer_state: Any,
        span: jax.Array,
        step: jax.Array,
    ) -> Leaves:
        """The inverse of `split`."""
        return (*params, *carried, *averages, *jax.tree.leaves(optimizer_state), span, step)

    def chosen(self, leaves: Leaves, weights: str) -> Leaves:
        """The params and carried arrays to evaluate with: as trained ("raw"), or averaged ("ema")."""
        if weights == "raw":
            return leaves[: self.n_visible]
        if weights != "ema":
            raise CompileError(f"Expected weights to be 'raw' or 'ema', got {weights!r}.")
        if self.n_model == self.n_visible:
            raise CompileError("There are no averaged weights. Compile with a decay, as in compile(ema=0.999).")
        pairs = zip(leaves[self.n_visible : self.n_model], leaves, strict=False)
        return tuple(average if average.dtype == raw.dtype else average.astype(raw.dtype) for average, raw in pairs)


class RunState:
    """Everything that changes while a model trains.

    Attributes:
      layout: what each leaf is.
      leaves: the arrays themselves, where `replicate` puts them.
      precision: what the steps compute in, see `trainer.graph.plan.plan`.
      convolutions: what convolves instead of XLA, if anything does.
      epoch: passes over the data begun since `compile`; with the seed it decides the order of the next one.
      between_steps: True while a `fit` runs. The averages then continue over an assignment to a Variable, as over a
        step; otherwise the average of a Variable starts again at the assigned value.
    """

    def __init__(
        self,
        module: nnx.Module,
        optimizer: optax.GradientTransformation | None,
        replicate: Replicate,
        freeze: modes.Freeze = modes.NOTHING_FROZEN,
        *,
        ema: bool = False,
        precision: str = "float32",
        axis: str | None = None,
        convolutions: modes.Convolutions | None = None,
        before: "RunState | None" = None,
    ) -> None:
        # `before` is a state of the same module, whose plan, which takes long to make, serves again if nothing changed.
        self.layout: Layout
        self._module = module
        self._replicate = replicate
        self._freeze = freeze
        self._ema = ema
        self.precision = precision
        self._axis = axis
        self.convolutions = convolutions
        self._graph = None if before is None else nnx.graphdef(module)
        self._outline: Outline | None = None  # of the module as it was last looked at, made when it is called for
        known = before.layout.plan if before is not None and before._planned(self) else None
        plan_ = known or self._plan()
        self._graph = self._graph or plan_.source[0]
        arrays = _arrays(modes.leaves(module))
        params = [a for a, slot in zip(arrays, plan_.slots, strict=True) if slot.kind == "param"]
        carried = [a for a, slot in zip(arrays, plan_.slots, strict=True) if slot.kind == "carried"]
        self.layout = Layout(plan_, params, optimizer, ema=ema)
        # What the user's module holds right now, if it is in step with `leaves`; None once training has moved on.
        self._shared: tuple[Any, ...] | None = (*params, *carried)
        self._held: tuple[Any, ...] = self._shared  # what it held when they parted
        state: list[Any] = []
        if optimizer is not None:
            nested = self.layout.nest([_on_one_device(param) for param in params])
            devices = sorted({device for param in jax.tree.leaves(nested) for device in param.devices()}, key=str)

            init = functools.partial(_initial_state, self.layout.optimizer, self.layout.tied)
            state = traced(jax.jit(init), (nested,), devices).run(nested)
        visible = [_strong(array) for array in self._shared]
        averages = map(_averaged, visible) if ema else ()
        leaves = [*visible, *averages, *state, _span(0, 0, 0), np.zeros((), np.int32)]
        # Copies of NumPy arrays: on a CPU they would share memory with the module's.
        self.leaves: Leaves = tuple(replicate([np.array(a) if isinstance(a, np.ndarray) else a for a in leaves]))
        self._set: dict[int, float] = {}  # leaves of the optimizer's state that were set
        self.epoch = 0
        self.between_steps = False

    @property
    def keeps_averages(self) -> bool:
        """True if there are averaged weights."""
        return self._ema

    @property
    def module(self) -> nnx.Module:
        """The user's own module; see `publish` for when it is up to date."""
        return self._module

    def _plan(self) -> Plan:
        return plan(self._module, self._freeze, self.precision, self._axis, self.convolutions)

    def _planned(self, other: "RunState") -> bool:
        """Whether the plan is that of the module as it is now, for what another state of it was made with."""
        slots = modes.slots_of(modes.leaves(self._module), self._freeze, modes.tied_paths(self._module))
        mine, theirs = (
            (state._graph, state._freeze, state.precision, state._axis, state.convolutions) for state in (self, other)
        )
        return mine == theirs and slots == self.layout.plan.slots

    def check_structure(self) -> None:
        """Raises if the module is not built as it was when the steps were made; its mode flags may have changed.

        Raises:
          ModuleError: if a layer was replaced, added or removed, or a setting of one was changed.
        """
        if self._outline is not None and self._outline.is_unchanged():
            return
        graph = nnx.graphdef(self._module)
        if graph != self._graph and self._plan() != self.layout.plan:
            raise ModuleError(
                "The module was changed after the model was made: a layer was replaced, added or removed, or one of "
                "its settings is another. The compiled steps do not know of that. Call model.compile(...) again, which "
                "keeps all values, or build a new resfit.Model."
            )
        self._graph = graph
        if self._outline is None or self._outline.readable:
            self._outline = Outline(self._module)

    def take_from_module(self) -> None:
        """Takes over what the user assigned to the module's Variables since they were published."""
        if self._shared is None:
            return
        now = self._in_module(self._leaves_of_module())
        taken = list(self.leaves)
        slots = [slot for kind in ("param", "carried") for slot in self.layout.plan.slots if slot.kind == kind]
        for i, (seen, value) in enumerate(zip(self._shared, now, strict=True)):
            written = isinstance(value, np.ndarray)  # perhaps in place, which the identity does not show
            if value is not seen or written:
                old = self.leaves[i]
                if np.shape(value) != old.shape:
                    raise ModuleError(
                        f"{slots[i].name!r} was assigned an array of shape {np.shape(value)}; the model was "
                        f"compiled with {old.shape}. Assign the same shape, or build a new resfit.Model from the "
                        "changed module."
                    )
                taken[i] = self._replicate(np.array(value, old.dtype) if written else jnp.asarray(value, old.dtype))
                # nnx.jit and nnx.update also rebind Variables that they do not change.
                if self._ema and not self.between_steps and not _equal(taken[i], old):
                    taken[self.layout.n_visible + i] = _averaged(taken[i])
        self.leaves = tuple(taken)
        self._shared = now

    def own(self) -> None:
        """Makes every leaf the trainer's alone, so that a step may donate it."""
        if self._shared is not None:
            self.take_from_module()
            self.leaves = self.copy()
            self._held, self._shared = self._shared, None

    def copy(self) -> Leaves:
        """Every leaf, in memory of its own."""
        return tuple(self._replicate(list(self.leaves), copy=True))

    def visible(self, weights: str = "raw") -> Leaves:
        """What the user sees of the state: params and carried arrays, current; "ema": their averages."""
        self.take_from_module()
        return self.layout.chosen(self.leaves, weights)

    def module_with(self, weights: str) -> nnx.Module:
        """A module that holds the weights as trained, which is the user's own, or a copy that holds their averages."""
        if weights == "raw":
            self.publish()
            return self._module
        copy: nnx.Module = nnx.clone(self._module)
        self._fill(copy, modes.leaves(copy), tuple(leaf.addressable_data(0) for leaf in self.visible(weights)))
        return copy

    def set_visible(self, arrays: Sequence[Any], averages: Sequence[Any] | None = None) -> None:
        """Assign all params and carried arrays, in the order of `visible`, and their averages, by default equal."""
        new = self._checked(arrays)
        if averages is not None:
            self.visible("ema")  # raises if there are none
        of = new if averages is None else self._checked(averages)
        rest = map(_averaged, of) if self._ema else ()
        self.replace((*self._replicate([*new, *rest]), *self.leaves[self.layout.n_model :]))
        self.publish()

    def _checked(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        """Copies of the arrays in the dtypes of `visible`; raises if their number or shapes differ from it."""
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
        # NumPy's copy, not JAX's: that one compiles a program for every shape.
        return [np.array(array, leaf.dtype) for array, leaf in zip(arrays, visible, strict=True)]

    def on_host(self) -> list[np.ndarray]:
        """Return a copy of every leaf as NumPy, random keys as their numbers. Waits for the device."""
        # Copies: on a CPU the host would else look into memory that the next step writes to.
        return [np.array(leaf) for leaf in jax.device_get([as_numbers(leaf) for leaf in self.leaves])]

    def shapes_on_host(self) -> list[list[int]]:
        """Return the shapes of the arrays of `on_host`."""
        return [list(as_numbers(leaf).shape) for leaf in self.leaves]

    def take_from_host(self, arrays: Sequence[np.ndarray]) -> None:
        """Take what `on_host` gave, in memory of its own: a step gives it up.

        Dtypes stay those of this state: earlier versions kept the averages of bfloat16 parameters in bfloat16.
        """
        leaves = [
            as_key(array.astype(as_numbers(leaf).dtype, copy=False), leaf)
            for array, leaf in zip(arrays, self.leaves, strict=True)
        ]
        self.replace(tuple(self._replicate(leaves, copy=True)))

    def rate_index(self) -> int | None:
        """Which leaf of the optimizer's state is its learning rate; None unless there is exactly one to set."""
        return index_of_rate(self.layout.split(self.leaves)[3])

    def skips(self) -> Skips | None:
        """Which leaves of the optimizer's state tell of skipped updates; None where none are skipped."""
        return skips(self.layout.split(self.leaves)[3])

    def leaf(self, index: int) -> jax.Array:
        """A leaf of the optimizer's state."""
        return self.leaves[self.layout.n_model + index]

    def set_leaf(self, index: int, value: float) -> None:
        """Sets a leaf of the optimizer's state, keeping its dtype, so that nothing is compiled again."""
        self._set[index] = value
        i = self.layout.n_model + index
        new = self._replicate(np.asarray(value, self.leaves[i].dtype))
        self.leaves = (*self.leaves[:i], new, *self.leaves[i + 1 :])

    def steps(self) -> int:
        """Updates done since `compile`. Waits for the device."""
        return int(self.leaves[-1])

    def span(self) -> np.ndarray:
        """What a named schedule spans, for `put_span`. Waits for the device."""
        return np.array(self.leaves[-2])

    def set_span(self, begin: int, steps: int, steps_per_epoch: int) -> None:
        """Stretches a named schedule over these steps."""
        self.put_span(_span(begin, steps, steps_per_epoch))

    @property
    def rate_factor(self) -> float:
        """What the rates of a schedule are multiplied by. Waits for the device."""
        return float(np.asarray(self.leaves[-2])[3:].view(np.float32)[0])

    @rate_factor.setter
    def rate_factor(self, value: float) -> None:
        begin, steps, steps_per_epoch, _ = np.asarray(self.leaves[-2])
        self.put_span(_span(begin, steps, steps_per_epoch, value))

    def put_span(self, span: np.ndarray) -> None:
        """The inverse of `span`."""
        self.leaves = (*self.leaves[:-2], self._replicate(span), self.leaves[-1])

    def replace(self, leaves: Leaves) -> None:
        """Takes the state that a step returned, when the user's module still holds the one before."""
        self.leaves = leaves
        if self._shared is not None:
            self._held, self._shared = self._shared, None

    def recover(self) -> bool:
        """After an exception: if a step died with the state it had been given, goes back to what the module holds.

        Returns:
          Whether that was necessary.
        """
        if not self._lost():
            return False
        fresh = RunState(
            self._module,
            self.layout.optimizer,
            self._replicate,
            self._freeze,
            ema=self._ema,
            precision=self.precision,
            axis=self._axis,
            convolutions=self.convolutions,
        )
        self.leaves, self._shared = fresh.leaves, fresh._shared
        for index, value in self._set.items():
            self.set_leaf(index, value)
        return True

    def _lost(self) -> bool:
        if any(leaf.is_deleted() for leaf in self.leaves):
            return True
        try:
            jax.block_until_ready(self.leaves)
        except jax.errors.JaxRuntimeError:  # what the failed step was to return
            return True
        return False

    def publish(self) -> None:
        """Puts the current values into the user's module."""
        if self._shared is not None:
            return
        leaves = self._leaves_of_module()
        self._warn_of_lost_assignments(leaves)
        # A user's module lives on one device, also when the run is replicated over several.
        visible = tuple(leaf.addressable_data(0) for leaf in self.leaves[: self.layout.n_visible])
        self._fill(self._module, leaves, visible)
        self._shared = visible

    def _fill(self, module: nnx.Module, found: Sequence[tuple[Any, Any]], visible: tuple[Any, ...]) -> None:
        slots = [slot for kind in ("param", "carried") for slot in self.layout.plan.slots if slot.kind == kind]
        values = {slot.path: value for slot, value in zip(slots, visible, strict=True)}
        # Variables are at hand; only bare arrays need the way through their containers.
        bare = {path: values[path] for path, leaf in found if path in values and not isinstance(leaf, nnx.Variable)}
        if bare:
            assign(module, bare)
        for path, leaf in found:
            if path in values and path not in bare:
                leaf.set_raw_value(values[path])

    def _warn_of_lost_assignments(self, leaves: Sequence[tuple[Any, Any]]) -> None:
        triples = zip(self.layout.visible_names, self._held, self._in_module(leaves), strict=True)
        lost = [name for name, held, now in triples if now is not held]
        if lost:
            _log.warning(
                "%s of the module got a new value while training had moved on from the old one, and it is lost. Assign "
                "to model.module instead, which is brought up to date when it is read.",
                lost,
            )

    def _leaves_of_module(self) -> Sequence[tuple[Any, Any]]:
        if self._outline is not None and self._outline.is_unchanged():
            return self._outline.leaves
        return modes.leaves(self._module)

    def _in_module(self, leaves: Sequence[tuple[Any, Any]]) -> tuple[Any, ...]:
        arrays = _arrays(leaves)
        slots = self.layout.plan.slots
        if len(arrays) != len(slots):
            raise ModuleError(
                f"The module had {len(slots)} Variables when the model was compiled and has {len(arrays)} now. "
                "Build a new resfit.Model from the changed module."
            )
        pairs = list(zip(arrays, slots, strict=True))
        return tuple(a for kind in ("param", "carried") for a, slot in pairs if slot.kind == kind)


def _initial_state(optimizer: optax.GradientTransformation, tied: dict[str, list[str]], params: Any) -> list[Any]:
    """Return the leaves of an optimizer's state: the cache of programs must not hold the user's classes."""
    with tied_names(tied):
        return jax.tree.leaves(optimizer.init(params))


def rate_factor(span: jax.Array) -> jax.Array:
    """What the rates of a schedule are multiplied by, as a step sees it."""
    return jax.lax.bitcast_convert_type(span[3], jnp.float32)


def _span(begin: int, steps: int, steps_per_epoch: int, factor: float = 1.0) -> np.ndarray:
    return np.array([begin, steps, steps_per_epoch, np.float32(factor).view(np.int32)], np.int32)


def _averaged(array: Any) -> Any:
    """The array in the dtype of its average: bfloat16 and float16 would round the small share of a new value away."""
    narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return array.astype(np.float32) if narrow else array


def _equal(a: jax.Array, b: jax.Array) -> bool:
    """Return True if two arrays, each whole on every device, hold the same values. Waits for the device."""
    return np.array_equal(np.asarray(a.addressable_data(0)), np.asarray(b.addressable_data(0)))


def _on_one_device(array: Any) -> jax.Array:
    """Return the array without the mesh that the user put it on: its type would name a mesh that nobody entered."""
    if not isinstance(array, jax.Array) or not array.is_fully_addressable or jax.typeof(array).sharding.mesh.empty:
        return jnp.asarray(array)
    # Given a device instead of a sharding, device_put keeps the mesh.
    moved: jax.Array = jax.device_put(array, jax.sharding.SingleDeviceSharding(min(array.devices(), key=str)))
    return moved


def _strong(array: Any) -> Any:
    """Return the array without JAX's weak type, which a checkpoint cannot keep and which makes another program."""
    return jnp.asarray(array, array.dtype) if isinstance(array, jax.Array) and array.weak_type else array


def _arrays(leaves: Sequence[tuple[Any, Any]]) -> list[Any]:
    return [leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf for _, leaf in leaves]
