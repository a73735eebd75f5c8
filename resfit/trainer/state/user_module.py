"""The exchange of arrays between a run and the user's module."""

import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from resfit.errors import ModuleError
from resfit.trainer.graph.containers import assign
from resfit.trainer.graph.freezing import Freeze
from resfit.trainer.graph.module_plan import Convolutions, ModulePlan, plan_module
from resfit.trainer.graph.outline import Outline
from resfit.trainer.graph.slots import module_leaves, slots_of, tied_paths
from resfit.trainer.overrides import check_flags
from resfit.trainer.state.train_state import ModelArrays

_log = logging.getLogger("resfit")

Path = tuple[Any, ...]


class UserModule:
    """The user's module, its plan, and the arrays that it shares with a run.

    After `publish` the module holds the arrays of the run, and `assigned` finds what the user assigns to it. After
    `part`, training has moved on: the module holds old arrays, and what the user assigns to it is lost.

    Args:
      module: the user's module.
      freeze: the parts that do not train.
      precision: see `trainer.graph.module_plan.plan_module`.
      axis: see `trainer.graph.module_plan.plan_module`.
      convolutions: see `trainer.graph.module_plan.plan_module`.
      before: the same module in an earlier run. Its plan, which takes long to make, serves again if nothing changed.

    Attributes:
      module: the user's module.
      plan: the plan of the module.
      shares: True if the module holds the arrays of the run, or newer ones.
    """

    def __init__(
        self,
        module: nnx.Module,
        freeze: Freeze,
        precision: str,
        axis: str | None,
        convolutions: Convolutions | None,
        before: "UserModule | None",
    ) -> None:
        self.module = module
        self._plan_arguments = freeze, precision, axis, convolutions
        self.plan: ModulePlan = self._plan_of(before) or self._make_plan()
        # Of the module at the last check.
        self._outline: Outline
        self._graph: Any
        if before is not None and before._outline.is_unchanged():
            self._outline, self._graph = before._outline, before._graph
        else:
            self._outline, self._graph = Outline(module), self.plan.source[0]
        self._flags_of: Outline | None = None  # of the module when its flags were checked
        self.shares = False
        self._paths = [slot.path for kind in ("param", "carried") for slot in self.plan.slots if slot.kind == kind]
        self._held: tuple[Any, ...] = ()  # the arrays of the module at the last exchange

    def _make_plan(self) -> ModulePlan:
        return plan_module(self.module, *self._plan_arguments)

    def _plan_of(self, before: "UserModule | None") -> ModulePlan | None:
        """Return the plan of an earlier run of the module; None if it is not the plan of this run."""
        if before is None or before._plan_arguments != self._plan_arguments:
            return None
        if before._outline.is_unchanged():
            leaves, tied = before._outline.leaves, {slot.path: slot.others for slot in before.plan.slots}
        elif before._graph == nnx.graphdef(self.module):
            leaves, tied = module_leaves(self.module), tied_paths(self.module)
        else:
            return None
        freeze, *_ = self._plan_arguments
        return before.plan if slots_of(leaves, freeze, tied) == before.plan.slots else None

    def check_structure(self) -> None:
        """Raise if the structure of the module changed after its plan was made. Its mode flags may change.

        Raises:
          ModuleError: if a layer was replaced, added or removed, or a setting of a layer was changed.
        """
        if self._outline.is_unchanged():
            return
        graph = nnx.graphdef(self.module)
        # Both graphs refer to the same lists and dicts.
        changed = self._outline.content_changed()
        if changed or (graph != self._graph and self._make_plan() != self.plan):
            raise ModuleError(
                "The module was changed after the model was made: a layer was replaced, added or removed, or a "
                "setting of a layer was changed. The compiled steps expect the old structure. Call "
                "model.compile(...) again, which keeps all values, or build a new resfit.Model."
            )
        self._graph = graph
        if self._outline.readable:
            self._outline = Outline(self.module)

    def check_for_training(self) -> None:
        """Raise as `check_structure`, and if an attribute that nothing reads marks a part as frozen."""
        unchanged = self._outline.is_unchanged()
        if unchanged and self._outline is self._flags_of:
            return
        check_flags(self._outline.modules if unchanged else nnx.iter_modules(self.module), self.plan)
        self.check_structure()
        self._flags_of = self._outline

    # --- from the module ----------------------------------------------------------------------------------------------

    def share(self) -> ModelArrays:
        """Return the arrays of the module, which the run takes over."""
        arrays = self._read(self._leaves())
        self._held, self.shares = (*arrays.params, *arrays.carried), True
        return arrays

    def assigned(self) -> dict[Path, Any]:
        """Return the arrays that the user assigned since the last exchange, by path. `share` takes note of them."""
        if not self.shares:
            return {}
        arrays = self._read(self._leaves())
        pairs = zip(self._held, (*arrays.params, *arrays.carried), self._paths, strict=True)
        # The user can write to a NumPy array in place, which its identity does not show.
        return {path: new for old, new, path in pairs if new is not old or isinstance(new, np.ndarray)}

    def part(self) -> None:
        """Note that training moves on from the arrays that the module holds."""
        self.shares = False

    def _leaves(self) -> Sequence[tuple[Path, Any]]:
        return self._outline.leaves if self._outline.is_unchanged() else module_leaves(self.module)

    def _read(self, leaves: Sequence[tuple[Path, Any]]) -> ModelArrays:
        slots = self.plan.slots
        if len(leaves) != len(slots):
            raise ModuleError(
                f"The module had {len(slots)} Variables when the model was compiled and has {len(leaves)} now. "
                "Build a new resfit.Model from the changed module."
            )
        kinds: dict[str, list[Any]] = {"param": [], "carried": []}
        for (_, leaf), slot in zip(leaves, slots, strict=True):
            if slot.kind in kinds:
                kinds[slot.kind].append(leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf)
        return ModelArrays(tuple(kinds["param"]), tuple(kinds["carried"]))

    # --- to the module ------------------------------------------------------------------------------------------------

    def publish(self, visible: Sequence[jax.Array]) -> None:
        """Put params and carried arrays into the module."""
        leaves = self._leaves()
        self._warn_of_lost_assignments(leaves)
        here = _local(visible)
        self._fill(self.module, leaves, here)
        self._held, self.shares = here, True

    def copy_with(self, visible: Sequence[jax.Array]) -> nnx.Module:
        """Return a copy of the module that holds these params and carried arrays."""
        copy: nnx.Module = nnx.clone(self.module)
        self._fill(copy, module_leaves(copy), _local(visible))
        return copy

    def _fill(self, module: nnx.Module, found: Sequence[tuple[Path, Any]], visible: tuple[Any, ...]) -> None:
        values = dict(zip(self._paths, visible, strict=True))
        # Variables are at hand; only bare arrays need the way through their containers.
        bare = {path: values[path] for path, leaf in found if path in values and not isinstance(leaf, nnx.Variable)}
        if bare:
            assign(module, bare)
        for path, leaf in found:
            if path in values and path not in bare:
                leaf.set_raw_value(values[path])

    def _warn_of_lost_assignments(self, leaves: Sequence[tuple[Path, Any]]) -> None:
        arrays = self._read(leaves)
        triples = zip(self._paths, self._held, (*arrays.params, *arrays.carried), strict=True)
        lost = [".".join(map(str, path)) for path, held, now in triples if now is not held]
        if lost:
            _log.warning(
                "The new value of %s in the module is lost: training had moved on from the old one. Assign to "
                "model.module instead, which is brought up to date when it is read.",
                lost,
            )


def _local(arrays: Sequence[jax.Array]) -> tuple[Any, ...]:
    # The user's module lives on one device, also if the run is replicated over several.
    return tuple(array.addressable_data(0) for array in arrays)
