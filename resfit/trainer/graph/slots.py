"""The leaves of a module's state: their paths, and which of them train."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx import graphlib

from resfit.errors import ModuleError
from resfit.trainer.graph.freezing import Freeze, Path


class Slot(NamedTuple):
    """One leaf of a module's state: its path, and its part in a step."""

    path: Path
    kind: str  # "param": trained; "carried": statistics and other state; "key", "count": created for every step
    type: type
    shape: tuple[int, ...] = ()
    frozen: bool = False  # a training step does not change its value
    others: tuple[Path, ...] = ()  # the other paths of a Variable that the module holds more than once

    @property
    def name(self) -> str:
        """The dotted path."""
        return ".".join(map(str, self.path))


def module_leaves(module: nnx.Module) -> list[tuple[Path, Any]]:
    """Return path and leaf of everything that a module holds, in the order of its slots, without sown values."""
    return list(nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.Intermediate))))


def slots_of(
    leaves: Iterable[tuple[Path, Any]], freeze: Freeze, tied: Mapping[Path, tuple[Path, ...]]
) -> tuple[Slot, ...]:
    """Return the slots of a module's leaves, in their order.

    Args:
      leaves: of the module.
      freeze: the parts that do not train.
      tied: of `tied_paths`.

    Raises:
      ModuleError: if a Variable holds anything else than one array.
    """
    return tuple(_slot(path, leaf, freeze, tied.get(path, ())) for path, leaf in leaves)


def _slot(path: Path, leaf: Any, freeze: Freeze, others: tuple[Path, ...]) -> Slot:
    value = leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf
    kind = type(leaf)
    name = ".".join(map(str, path))
    if not isinstance(value, jax.Array | np.ndarray):
        raise ModuleError(
            f"The Variable {name!r} ({kind.__name__}) holds a {type(value).__name__}; resfit trains modules whose "
            "Variables each hold one array. Hold a pytree of arrays as one Variable per array (nnx.Dict, nnx.List). A "
            "Linen module can sow into the collection 'intermediates', which is not kept."
        )
    if issubclass(kind, nnx.RngKey):
        return Slot(path, "key", kind, value.shape)
    if issubclass(kind, nnx.RngCount):
        return Slot(path, "count", kind, value.shape)
    if issubclass(kind, nnx.Param) and jnp.issubdtype(value.dtype, jnp.inexact):
        # A frozen parameter is carried: it has no gradient and no optimizer state.
        frozen = freeze.covers(leaf, path, *others)
        return Slot(path, "carried" if frozen else "param", kind, value.shape, frozen, others)
    frozen = freeze.batch_norm and issubclass(kind, nnx.BatchStat) and freeze.covers(leaf, path, *others)
    return Slot(path, "carried", kind, value.shape, frozen, others)


def tied_paths(module: nnx.Module) -> dict[Path, tuple[Path, ...]]:
    """Return the other paths of every Variable and part that a module holds more than once, by each of its paths.

    Example:
      >>> layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
      >>> tied_paths(nnx.Sequential(layer, layer))["layers", 1, "bias"]
      (('layers', 0, 'bias'),)
    """
    found: dict[int, list[Path]] = {}

    def walk(node: Any, path: Path, around: frozenset[int]) -> None:
        if isinstance(node, nnx.Variable | nnx.Pytree):
            found.setdefault(id(node), []).append(path)
        container: Any = graphlib.get_node_impl(node)
        if container is not None and id(node) not in around:
            for key, child in container.node_dict(node).items():
                walk(child, (*path, key), around | {id(node)})

    walk(module, (), frozenset())
    tied = [paths for paths in found.values() if len(paths) > 1]
    return {path: tuple(other for other in paths if other != path) for paths in tied for path in paths}


def check_names(slots: Sequence[Slot]) -> None:
    """Raise if two arrays have the same dotted path, which files could not distinguish."""
    paths = {slot.name: slot.path for slot in slots}
    for slot in slots:
        if paths[slot.name] != slot.path:
            raise ModuleError(
                f"Two arrays of the module have the name {slot.name!r}: their paths are {slot.path} and "
                f"{paths[slot.name]}. Expected different dotted paths. Rename a key of the dict that holds one of them."
            )
