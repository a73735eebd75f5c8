"""Warn of BatchNorms that a module runs in the wrong mode."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from resfit.trainer.graph.passed_through import changed
from resfit.trainer.graph.slots import module_leaves
from resfit.trainer.state.train_state import Leaves, StateLayout

_log = logging.getLogger("resfit")


def warn_if_moving(layout: StateLayout, before: Leaves, module: Any, again: Callable[[Leaves], Any]) -> None:
    """Warn of BatchNorms that stay in training mode in evaluation.

    Args:
      layout: of the arrays.
      before: the carried arrays before the call.
      module: after the call.
      again: carried arrays -> the module after one more call. Used if a statistic is another array than before: a
        transformation such as nnx.remat returns all statistics as new arrays.
    """
    now = _carried(layout, before, module)
    others = [i for i, slot in enumerate(layout.carried) if _is_statistic(slot) and now[i] is not before[i]]
    if not others:
        return
    if isinstance(now[others[0]], jax.core.Tracer):
        moved = changed(lambda carried: _carried(layout, carried, again(carried)), before)
    else:
        moved = [not np.array_equal(*pair) for pair in zip(before, now, strict=True)]
    name = next((layout.carried[i].name for i in others if moved[i]), None)
    if name is not None:
        _log.warning(
            "The BatchNorm statistic %r moves in evaluation too: the module always runs its norms in training "
            "mode, so the output for an image depends on the other images in its batch. Leave "
            "use_running_average=False and train=True out of __call__, or pass the mode on.",
            name,
        )


def warn_if_frozen(layout: StateLayout, before: Leaves, after: Leaves) -> None:
    """Warn of BatchNorms that stay in evaluation mode in training."""
    statistics = [
        (old, new)
        for slot, old, new in zip(layout.carried, before, after, strict=True)
        if _is_statistic(slot) and not slot.frozen
    ]
    warned = layout.warned["statistics"]  # an eager step would warn each time
    if statistics and not warned and all(old is new for old, new in statistics):
        warned.add("unchanged")
        _log.warning(
            "The training step leaves every BatchNorm statistic unchanged: the module runs its norms in evaluation "
            "mode. Pass the mode on inside __call__ or compute_loss (train=train), or call Model.freeze if this is "
            "intended."
        )


def _is_statistic(slot: Any) -> bool:
    return issubclass(slot.type, nnx.BatchStat)


def _carried(layout: StateLayout, before: Leaves, module: Any) -> Leaves:
    """Return the carried arrays of a module; those that its call removed, from before."""
    now = {path: leaf.get_raw_value() for path, leaf in module_leaves(module) if isinstance(leaf, nnx.Variable)}
    return tuple(now.get(slot.path, old) for slot, old in zip(layout.carried, before, strict=True))
