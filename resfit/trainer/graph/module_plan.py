"""Plan how to put a module together in training or evaluation mode, without touching the user's own mode flags.

A module in a mode is a copy of its graph in which `nets.modes.switched` has set flags and mode arguments. Copies are
made of the graph definition only: no array is copied, and the user's module never changes.
"""

import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from resfit.backends.by_value import NotByValueError, by_value
from resfit.errors import ModuleError
from resfit.nets import linen
from resfit.nets.modes import hold_in_evaluation, switched
from resfit.trainer.graph.contents import copied, plain_attributes
from resfit.trainer.graph.explain import no_module
from resfit.trainer.graph.freezing import NOTHING_FROZEN, Freeze, Path, check_patterns
from resfit.trainer.graph.layer_options import Normalize, set_layer_options
from resfit.trainer.graph.slots import Slot, check_names, module_leaves, slots_of, tied_paths


class Convolutions(NamedTuple):
    """Replacements of `jax.lax.conv_general_dilated`, with the same arguments, and of what follows it. Hashable.

    Attributes:
      whole: for whole batches.
      part: for a part of a batch whose other parts are on other devices.
      fused: turns a step without derivatives into one that computes a convolution and what follows it in one pass.
      normalize: for BatchNorms in training, see `set_layer_options`; None: they keep their arithmetic.
      fused_norms: turns a function that will be differentiated into one in which `normalize` includes what follows it.
    """

    whole: Callable[..., jax.Array]
    part: Callable[..., jax.Array]
    fused: Callable[[Callable[..., Any]], Callable[..., Any]]
    normalize: Normalize | None = None
    fused_norms: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None


@dataclasses.dataclass(frozen=True, slots=True, weakref_slot=True)
class ModulePlan:
    """The graphs of a module in both modes, and its leaves. Holds no arrays.

    Attributes:
      train_graph: nnx.GraphDef with every layer in training mode.
      part_graph: the same, for a part of a batch whose other parts are on other devices.
      eval_graph: nnx.GraphDef with every layer in evaluation mode.
      slots: in the order of the module's flat state.
      source: the module's own graph and the arguments of `plan_module`, which decide the graphs.
    """

    train_graph: Any
    part_graph: Any
    eval_graph: Any
    slots: tuple[Slot, ...]
    source: tuple[Any, ...] = dataclasses.field(compare=False)

    def decided_by(self) -> tuple[Any, ...]:
        """Return the values that decide the graphs and slots, see `by_value`."""
        graphs = (
            self.source if _is_of_libraries(self.source[0]) else (self.train_graph, self.part_graph, self.eval_graph)
        )
        return self.slots, *graphs

    def names(self, kind: str) -> tuple[str, ...]:
        """Return the dotted paths of the slots of one kind."""
        return tuple(slot.name for slot in self.slots if slot.kind == kind)

    @property
    def has_batch_norm(self) -> bool:
        """True if the module holds running statistics."""
        return any(issubclass(slot.type, nnx.BatchStat) for slot in self.slots)

    def assemble(
        self,
        params: Sequence[jax.Array],
        carried: Sequence[jax.Array],
        key: jax.Array,
        *,
        train: bool,
        part: bool = False,
    ) -> nnx.Module:
        """Put the module together inside a traced function, in one mode.

        Args:
          params: one array per "param" slot, in order.
          carried: one array per "carried" slot, in order.
          key: the step's key. Every random stream of the module gets its own, folded in from this one, with its counter
            at zero: there is no random state to lose, and no two layers share a mask.
          train: the mode.
          part: True if the module gets a part of a batch, see `part_graph`.

        Returns:
          A module in which every part supplies the mode arguments that its caller omits.
        """
        arrays = {"param": iter(params), "carried": iter(carried)}
        filled: list[tuple[Path, Any]] = []
        streams = 0
        for slot in self.slots:
            if slot.kind in arrays:
                filled.append((slot.path, next(arrays[slot.kind])))
            elif slot.kind == "key":
                stream = jax.random.fold_in(key, streams)  # layers stacked by nnx.vmap hold an array of keys
                filled.append((slot.path, jax.random.split(stream, slot.shape) if slot.shape else stream))
                streams += 1
            else:
                filled.append((slot.path, jnp.zeros(slot.shape, jnp.uint32)))
        graph = (self.part_graph if part else self.train_graph) if train else self.eval_graph
        module: nnx.Module = nnx.merge(graph, nnx.from_flat_state(filled))
        _copy_contents(module)
        return module

    def read(self, module: nnx.Module) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        """Return the module's params and carried arrays after a call, in the order of the slots.

        Raises:
          ModuleError: if the call created Variables (other than Intermediates), or removed some.
        """
        expected = {slot.path: slot for slot in self.slots}
        found: dict[Path, Any] = {}
        for path, leaf in module_leaves(module):
            if path not in expected:
                raise ModuleError(
                    f"The call created {'.'.join(map(str, path))!r} ({type(leaf).__name__}), which did not exist when "
                    "the module was built; it would be lost after every step. Create it in __init__, or make it an "
                    "nnx.Intermediate if it is only for inspection."
                )
            found[path] = leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf
        missing = [slot.name for slot in self.slots if slot.path not in found]
        if missing:
            raise ModuleError(
                f"The call removed {missing} from the module. A module must keep its Variables when called."
            )
        return (
            tuple(found[slot.path] for slot in self.slots if slot.kind == "param"),
            tuple(found[slot.path] for slot in self.slots if slot.kind == "carried"),
        )


def plan_module(
    module: nnx.Module,
    freeze: Freeze = NOTHING_FROZEN,
    precision: str = "float32",
    axis: str | None = None,
    convolutions: Convolutions | None = None,
) -> ModulePlan:
    """Return the plan of a module: its leaves, and its graph in both modes.

    Args:
      module: any.
      freeze: the parts that do not train.
      precision: of the layers, see `set_layer_options`.
      axis: the mapped axis over which BatchNorms take their statistics in a part of a batch; None: each part's own.
      convolutions: for the layers that use JAX's own; None: they keep it.

    Raises:
      ModuleError: if it is not an nnx.Module, or a Variable holds anything else than one array.
    """
    if not isinstance(module, nnx.Module):
        raise no_module(module)
    graph, state = _split(module)
    tied = tied_paths(module)
    leaves = list(nnx.to_flat_state(state))
    slots = slots_of(leaves, freeze, tied)
    check_names(slots)
    check_patterns(freeze, leaves, tied)
    source = (graph, freeze, precision, axis, convolutions)
    key = _key(slots, source)
    known = None if key is None else _PLANS.get(key)
    if known is not None:
        return known
    make = functools.partial(_graph_in_mode, graph, state, frozen=_frozen_statistics(slots), precision=precision)
    whole, normalize = (None, None) if convolutions is None else (convolutions.whole, convolutions.normalize)
    train, evaluate = (make(train=train, convolve=whole, normalize=normalize) for train in (True, False))
    part = train
    if axis is not None or (convolutions is not None and convolutions.part != whole):
        part = make(train=True, axis=axis, convolve=None if convolutions is None else convolutions.part)
    made = ModulePlan(train, part, evaluate, slots, source)
    if key is not None:
        _PLANS[key] = made
    return made


# Plans in use, for the next module with an equal graph.
_PLANS: weakref.WeakValueDictionary[Any, ModulePlan] = weakref.WeakValueDictionary()


def _key(slots: tuple[Slot, ...], source: tuple[Any, ...]) -> Any:
    """Return the key of a plan in `_PLANS`; None for custom layers, which can take their mode in any way."""
    if _is_of_libraries(source[0]):
        with contextlib.suppress(NotByValueError):
            return by_value((slots, *source))
    return None


def _split(module: nnx.Module) -> tuple[Any, Any]:
    """Return graph and state of a module, without the values that its calls sowed."""
    graph, state = nnx.split(module)
    if any(isinstance(leaf, nnx.Intermediate) for _, leaf in nnx.to_flat_state(state)):
        copy = nnx.merge(graph, state)
        nnx.pop(copy, nnx.Intermediate)
        graph, state = nnx.split(copy)
    return graph, state


def _is_of_libraries(graph: Any) -> bool:
    kinds = {node.type for node in graph.nodes if isinstance(getattr(node, "type", None), type)}
    return all(kind.__module__.partition(".")[0] in ("builtins", "flax", "resfit") for kind in kinds)


def _graph_in_mode(
    graph: Any,
    state: Any,
    *,
    train: bool,
    frozen: frozenset[Path],
    precision: str,
    axis: str | None = None,
    convolve: Callable[..., jax.Array] | None = None,
    normalize: Normalize | None = None,
) -> Any:
    copy = nnx.merge(graph, state)
    set_layer_options(copy, precision=precision, axis=axis, convolve=convolve, normalize=normalize)
    copy = switched(copy, train)
    if train and frozen:
        _hold_frozen_norms(copy, frozen)
    return nnx.split(copy)[0]


def _copy_contents(module: nnx.Module) -> None:
    """Give a module its own lists and dicts, so that a call cannot write to those of the user's module."""
    for _, part in nnx.iter_modules(module):
        for name, value in plain_attributes(part).items():
            own = copied(value)
            if own is not value:
                object.__setattr__(part, name, own)


def _frozen_statistics(slots: tuple[Slot, ...]) -> frozenset[Path]:
    """Return all paths of frozen running statistics."""
    frozen = [slot for slot in slots if slot.frozen and issubclass(slot.type, nnx.BatchStat)]
    return frozenset(path for slot in frozen for path in (slot.path, *slot.others))


def _hold_frozen_norms(copy: nnx.Module, frozen: frozenset[Path]) -> None:
    """Make the norms whose statistics are all frozen normalize by them."""
    for path, part in nnx.iter_modules(copy):
        if isinstance(part, nnx.bridge.ToNNX):
            statistics: dict[Path, list[Path]] = {}
            for inside, _ in nnx.to_flat_state(nnx.state(part, nnx.BatchStat)):
                statistics.setdefault(inside[:-1], []).append((*path, *inside))
            norms = {norm for norm, paths in statistics.items() if frozen.issuperset(paths)}
            if norms:
                linen.hold_in_evaluation(part, frozenset(norms))
            continue
        own = [(*path, name) for name, value in vars(part).items() if isinstance(value, nnx.BatchStat)]
        if own and frozen.issuperset(own):
            hold_in_evaluation(part)
