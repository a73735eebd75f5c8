"""Training and evaluation mode for any nnx.Module, without touching the user's own mode flags.

A module in a mode is a *copy of its graph* in which `nets.modes.switched` has set flags and mode arguments. Copies are
made of the graph definition only: the arrays stay where they are, and the module that the user holds is never changed.
"""

import contextlib
import dataclasses
import fnmatch
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx import graphlib

from resfit._utils.suggest import did_you_mean
from resfit.backends.by_value import NotByValueError, by_value
from resfit.errors import ModuleError, ResfitError
from resfit.nets import linen
from resfit.nets.modes import hold_in_evaluation, switched


class Slot(NamedTuple):
    """One leaf of a module's state: where it is and what becomes of it."""

    path: tuple[Any, ...]
    kind: str  # "param": trained; "carried": statistics and other state; "key", "count": made anew for every step
    type: type
    shape: tuple[int, ...] = ()
    frozen: bool = False  # keeps its value whatever a training step does to it
    others: tuple[tuple[Any, ...], ...] = ()  # the other paths of a Variable that the module holds more than once

    @property
    def name(self) -> str:
        return ".".join(map(str, self.path))


@dataclasses.dataclass(frozen=True, slots=True, weakref_slot=True)
class Plan:
    """How to put a module together in either mode. Free of arrays.

    Attributes:
      train_graph: nnx.GraphDef with every layer in training mode.
      part_graph: the same, for a part of a batch whose other parts are on other devices.
      eval_graph: nnx.GraphDef with every layer in evaluation mode.
      slots: in the order of the module's flat state.
      source: what the graphs are made of: the module's own graph, and the arguments of `plan`.
    """

    train_graph: Any
    part_graph: Any
    eval_graph: Any
    slots: tuple[Slot, ...]
    source: tuple[Any, ...] = dataclasses.field(compare=False)

    def decided_by(self) -> tuple[Any, ...]:
        """Return what decides the graphs and slots, see `by_value`."""
        graphs = (
            self.source if _is_of_libraries(self.source[0]) else (self.train_graph, self.part_graph, self.eval_graph)
        )
        return self.slots, *graphs

    def names(self, kind: str) -> tuple[str, ...]:
        return tuple(slot.name for slot in self.slots if slot.kind == kind)

    @property
    def has_batch_norm(self) -> bool:
        return any(issubclass(slot.type, nnx.BatchStat) for slot in self.slots)


class Convolutions(NamedTuple):
    """What convolves in the place of `jax.lax.conv_general_dilated`, with its arguments. Hashable.

    Attributes:
      whole: for whole batches.
      part: for a part of a batch whose other parts are on other devices.
      fused: makes of a step without derivatives one that does in one pass what follows a convolution.
    """

    whole: Callable[..., jax.Array]
    part: Callable[..., jax.Array]
    fused: Callable[[Callable[..., Any]], Callable[..., Any]]


class Freeze(NamedTuple):
    """Which parts of a module do not train.

    Attributes:
      patterns: shell patterns of dotted paths; a pattern that matches a part covers everything inside it.
      batch_norm: whether frozen BatchNorms also keep their statistics, and normalise by them.
    """

    patterns: tuple[str, ...] = ()
    batch_norm: bool = True

    def covers(self, *paths: Sequence[Any]) -> bool:
        """Return whether a pattern matches one of these paths of a part, or a part around it."""
        names = [".".join(map(str, path[:n])) for path in paths for n in range(1, len(path) + 1)]
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in self.patterns)


NOTHING_FROZEN = Freeze()


def plan(
    module: nnx.Module,
    freeze: Freeze = NOTHING_FROZEN,
    precision: str = "float32",
    axis: str | None = None,
    convolutions: Convolutions | None = None,
) -> Plan:
    """Reads a module's graph and derives its two modes.

    Args:
      module: any.
      freeze: what does not train.
      precision: "float32": every layer computes in the dtype it was built with; "bfloat16": see `compute_in`.
      axis: the mapped axis over which BatchNorms take their statistics in a part of a batch; None: each part's own.
      convolutions: for the layers that use JAX's own; None: they do.

    Raises:
      ModuleError: if it is no nnx.Module, or a Variable holds something else than one array.
    """
    if not isinstance(module, nnx.Module):
        raise _no_module(module)
    graph, state = nnx.split(module)
    if any(isinstance(leaf, nnx.Intermediate) for _, leaf in nnx.to_flat_state(state)):
        copy = nnx.merge(graph, state)
        nnx.pop(copy, nnx.Intermediate)
        graph, state = nnx.split(copy)
    tied = tied_paths(module)
    slots = slots_of(nnx.to_flat_state(state), freeze, tied)
    _check_names(slots)
    for pattern in freeze.patterns:
        if not any(Freeze((pattern,)).covers(slot.path, *slot.others) for slot in slots):
            parts = sorted({str(slot.path[0]) for slot in slots})
            raise ModuleError(
                f"Nothing in the module matches the pattern {pattern!r}. Expected the dotted path of a part, with * "
                f"for anything, as in {slots[0].name!r}; the outermost parts are {parts}.{did_you_mean(pattern, parts)}"
            )
    source = (graph, freeze, precision, axis, convolutions)
    key = None
    if _is_of_libraries(graph):
        with contextlib.suppress(NotByValueError):
            key = by_value((slots, *source))
    known = None if key is None else _PLANS.get(key)
    if known is not None:
        return known
    make = functools.partial(_graph_in_mode, graph, state, freeze=freeze, tied=tied, precision=precision)
    whole = None if convolutions is None else convolutions.whole
    train, evaluate = (make(train=train, convolve=whole) for train in (True, False))
    part = train
    if axis is not None or (convolutions is not None and convolutions.part != whole):
        part = make(train=True, axis=axis, convolve=None if convolutions is None else convolutions.part)
    made = Plan(train, part, evaluate, slots, source)
    if key is not None:
        _PLANS[key] = made
    return made


# Plans in use, for the next module of an equal graph. Not those of custom layers, which can take their mode in any way.
_PLANS: weakref.WeakValueDictionary[Any, Plan] = weakref.WeakValueDictionary()


def _is_of_libraries(graph: Any) -> bool:
    kinds = {node.type for node in graph.nodes if isinstance(getattr(node, "type", None), type)}
    return all(kind.__module__.partition(".")[0] in ("builtins", "flax", "resfit") for kind in kinds)


def _check_names(slots: Sequence[Slot]) -> None:
    """Raise if files could not tell two arrays apart."""
    paths = {slot.name: slot.path for slot in slots}
    for slot in slots:
        if paths[slot.name] != slot.path:
            raise ModuleError(
                f"Two arrays of the module have the name {slot.name!r}: their paths are {slot.path} and "
                f"{paths[slot.name]}. Expected different dotted paths. Rename a key of the dict that holds one of them."
            )


def _no_module(module: Any) -> ModuleError:
    kind = type(module).__name__
    if isinstance(module, type):
        return ModuleError(
            f"Expected a flax.nnx.Module, got the class {module.__name__} itself. Pass an object: "
            f"{module.__name__}(...)."
        )
    if isinstance(module, str):
        return ModuleError(
            f"Model got the text {module!r}. Expected a flax.nnx.Module: one by name is "
            f"resfit.create_model({module!r}, num_classes=...)."
        )
    package = type(module).__module__.partition(".")[0]
    if package in ("torch", "keras") or any(cls.__module__.startswith("torch.") for cls in type(module).__mro__):
        return ModuleError(
            f"Expected a flax.nnx.Module, got {package}'s {kind}. Build the network with resfit.create_model or as an "
            "nnx.Module; the weights of PyTorch's ResNets are read by resfit.weights.load_state_dict."
        )
    return ModuleError(
        f"Expected a flax.nnx.Module, got {kind}. Wrap a Linen module as "
        "flax.nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)).lazy_init(x); call a function from the __call__ of a custom "
        "nnx.Module."
    )


@contextlib.contextmanager
def explained(function: Any, *arguments: Any) -> Iterator[None]:
    """Adds to an error that the user's own code raises inside a step what it was called with.

    Args:
      function: a module or a function.
      arguments: what it gets.
    """
    try:
        yield
    except ResfitError:
        raise
    except Exception as error:
        name = getattr(function, "__name__", None) or type(function).__name__
        given = ", ".join(jax.tree.map(_short, argument).__repr__() for argument in arguments)
        error.add_note(
            f"{name} was called with ({given}) inside resfit's step, where arrays have shapes and dtypes but no "
            "values: use jax.numpy, not NumPy or Python's if. To look inside, compile(dispatch='eager') runs without "
            "compiling."
        )
        raise


class _short:  # noqa: N801 - it makes reprs
    """How an array is told of: float32[8, 28, 28, 1]."""

    def __init__(self, array: Any) -> None:
        self._text = f"{array.dtype}{list(array.shape)}" if hasattr(array, "dtype") else repr(array)

    def __repr__(self) -> str:
        return self._text


def tied_paths(module: nnx.Module) -> dict[tuple[Any, ...], tuple[tuple[Any, ...], ...]]:
    """Return the other paths of every Variable and part that a module holds more than once, by each of its paths.

    Example:
      >>> layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
      >>> tied_paths(nnx.Sequential(layer, layer))["layers", 1, "bias"]
      (('layers', 0, 'bias'),)
    """
    found: dict[int, list[tuple[Any, ...]]] = {}

    def walk(node: Any, path: tuple[Any, ...], around: frozenset[int]) -> None:
        if isinstance(node, nnx.Variable | nnx.Pytree):
            found.setdefault(id(node), []).append(path)
        container: Any = graphlib.get_node_impl(node)
        if container is not None and id(node) not in around:
            for key, child in container.node_dict(node).items():
                walk(child, (*path, key), around | {id(node)})

    walk(module, (), frozenset())
    tied = [paths for paths in found.values() if len(paths) > 1]
    return {path: tuple(other for other in paths if other != path) for paths in tied for path in paths}


def leaves(module: nnx.Module) -> list[tuple[tuple[Any, ...], Any]]:
    """Path and leaf of everything that a module holds, in the plan's order, but not what it sowed in a call."""
    return list(nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.Intermediate))))


Tied = Mapping[tuple[Any, ...], tuple[tuple[Any, ...], ...]]


def slots_of(leaves: Iterable[tuple[tuple[Any, ...], Any]], freeze: Freeze, tied: Tied) -> tuple[Slot, ...]:
    """Return the slots of a module's leaves, in their order.

    Args:
      leaves: of the module.
      freeze: what does not train.
      tied: of `tied_paths`.

    Raises:
      ModuleError: if a Variable holds something else than one array.
    """
    return tuple(_slot(path, leaf, freeze, tied.get(path, ())) for path, leaf in leaves)


def _slot(path: tuple[Any, ...], leaf: Any, freeze: Freeze, others: tuple[tuple[Any, ...], ...]) -> Slot:
    value = leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf
    kind = type(leaf)
    name = ".".join(map(str, path))
    if not isinstance(value, jax.Array | np.ndarray):
        raise ModuleError(
            f"The Variable {name!r} ({kind.__name__}) holds a {type(value).__name__}; resfit trains modules whose "
            "Variables each hold one array. Hold a pytree of arrays as one Variable per array (nnx.Dict, nnx.List)."
        )
    if issubclass(kind, nnx.RngKey):
        return Slot(path, "key", kind, value.shape)
    if issubclass(kind, nnx.RngCount):
        return Slot(path, "count", kind, value.shape)
    if issubclass(kind, nnx.Param) and jnp.issubdtype(value.dtype, jnp.inexact):
        # A frozen parameter is carried: no gradient is computed for it and no optimizer state kept.
        frozen = freeze.covers(path, *others)
        return Slot(path, "carried" if frozen else "param", kind, value.shape, frozen, others)
    frozen = freeze.batch_norm and issubclass(kind, nnx.BatchStat) and freeze.covers(path, *others)
    return Slot(path, "carried", kind, value.shape, frozen, others)


def _graph_in_mode(
    graph: Any,
    state: Any,
    *,
    train: bool,
    freeze: Freeze,
    tied: Tied,
    precision: str,
    axis: str | None = None,
    convolve: Callable[..., jax.Array] | None = None,
) -> Any:
    copy = nnx.merge(graph, state)
    for _, part in nnx.iter_modules(copy):
        # An axis of the user's own, of a loop with pmap, is bound by nobody here.
        if isinstance(part, nnx.BatchNorm) and part.axis_name != axis:
            part.axis_name = axis
        # A layer that was given a function of its own keeps it.
        if convolve is not None and isinstance(part, nnx.Conv) and part.conv_general_dilated is _JAXS:
            part.conv_general_dilated = convolve
    if precision != "float32":
        compute_in(copy, precision)
    copy = switched(copy, train)
    if train and freeze.batch_norm and freeze.patterns:
        _hold_frozen_norms(copy, lambda path: freeze.covers(path, *tied.get(path, ())))
    return nnx.split(copy)[0]


def _hold_frozen_norms(copy: nnx.Module, covers: Callable[[tuple[Any, ...]], bool]) -> None:
    for path, part in nnx.iter_modules(copy):
        if isinstance(part, nnx.bridge.ToNNX):
            statistics = [inside for inside, _ in nnx.to_flat_state(nnx.state(part, nnx.BatchStat))]
            norms = {inside[:-1] for inside in statistics if covers((*path, *inside))}
            if norms:
                linen.hold_in_evaluation(part, frozenset(norms))
        elif covers(path) and any(isinstance(value, nnx.BatchStat) for value in vars(part).values()):
            hold_in_evaluation(part)


_JAXS = jax.lax.conv_general_dilated


# Layers of flax that multiply by a kernel. A subclass may have its reasons: it keeps its dtype.
_MULTIPLYING = (nnx.Conv, nnx.ConvTranspose, nnx.Linear, nnx.LinearGeneral, nnx.Einsum, nnx.MultiHeadAttention)


def compute_in(module: nnx.Module, precision: str) -> None:
    """Lets the layers that multiply by kernels compute in another dtype. Parameters and statistics keep theirs.

    Norms go on computing in float32; those that say in which dtype they return it (`output_dtype`, as resfit's do)
    return it in the other one.

    Args:
      module: changed.
      precision: such as "bfloat16".
    """
    for _, part in nnx.iter_modules(module):
        if type(part) in _MULTIPLYING:
            part.dtype = jnp.dtype(precision)  # type: ignore[attr-defined]
        elif hasattr(part, "output_dtype"):
            part.output_dtype = precision


def assemble(
    plan: Plan,
    params: Sequence[jax.Array],
    carried: Sequence[jax.Array],
    key: jax.Array,
    *,
    train: bool,
    part: bool = False,
) -> nnx.Module:
    """Puts a module together inside a traced function, in one mode.

    Args:
      plan: of the module.
      params: one array per "param" slot, in order.
      carried: one array per "carried" slot, in order.
      key: the step's key. Every random stream of the module gets its own, folded in from this one, with its counter at
        zero: there is no random state to lose, and no two layers share a mask.
      train: the mode.
      part: whether it will see a part of a batch, see `Plan`.

    Returns:
      A module of which every part supplies the mode arguments that its caller leaves out.
    """
    arrays = {"param": iter(params), "carried": iter(carried)}
    filled: list[tuple[tuple[Any, ...], Any]] = []
    streams = 0
    for slot in plan.slots:
        if slot.kind in arrays:
            filled.append((slot.path, next(arrays[slot.kind])))
        elif slot.kind == "key":
            stream = jax.random.fold_in(key, streams)  # layers stacked by nnx.vmap hold an array of keys
            filled.append((slot.path, jax.random.split(stream, slot.shape) if slot.shape else stream))
            streams += 1
        else:
            filled.append((slot.path, jnp.zeros(slot.shape, jnp.uint32)))
    graph = (plan.part_graph if part else plan.train_graph) if train else plan.eval_graph
    module: nnx.Module = nnx.merge(graph, nnx.from_flat_state(filled))
    return module


def read(plan: Plan, module: nnx.Module) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """The module's params and carried arrays after a call, in the plan's order.

    Raises:
      ModuleError: if the call created Variables (other than Intermediates), or removed some.
    """
    expected = {slot.path: slot for slot in plan.slots}
    found: dict[tuple[Any, ...], Any] = {}
    for path, leaf in leaves(module):
        if path in expected:
            found[path] = leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf
        else:
            raise ModuleError(
                f"The call created {'.'.join(map(str, path))!r} ({type(leaf).__name__}), which did not exist when the "
                "module was built; it would be lost after every step. Create it in __init__, or make it an "
                "nnx.Intermediate if it is only meant to be looked at."
            )
    missing = [slot.name for slot in plan.slots if slot.path not in found]
    if missing:
        raise ModuleError(f"The call removed {missing} from the module. A module must keep its Variables when called.")
    return (
        tuple(found[slot.path] for slot in plan.slots if slot.kind == "param"),
        tuple(found[slot.path] for slot in plan.slots if slot.kind == "carried"),
    )
