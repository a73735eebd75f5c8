"""Warnings of BatchNorms that stay in the mode of another step."""

import logging
from typing import Any

from flax import nnx

from resfit.trainer.graph.slots import module_leaves
from resfit.trainer.state.train_state import Leaves, StateLayout

_log = logging.getLogger("resfit")


def warn_if_moving(layout: StateLayout, before: Leaves, module: Any) -> None:
    """Warn of BatchNorms that stay in training mode in evaluation."""
    now = dict(module_leaves(module))
    for slot, old in zip(layout.carried, before, strict=True):
        leaf = now.get(slot.path)
        if issubclass(slot.type, nnx.BatchStat) and leaf is not None and leaf.get_raw_value() is not old:
            _log.warning(
                "The BatchNorm statistic %r moves in evaluation too: the module always runs its norms in training "
                "mode, so the output for an image depends on the other images in its batch. Leave "
                "use_running_average=False and train=True out of __call__, or pass the mode on.",
                slot.name,
            )
            return


def warn_if_frozen(layout: StateLayout, before: Leaves, after: Leaves) -> None:
    """Warn of BatchNorms that stay in evaluation mode in training."""
    statistics = [
        (old, new)
        for slot, old, new in zip(layout.carried, before, after, strict=True)
        if issubclass(slot.type, nnx.BatchStat) and not slot.frozen
    ]
    if statistics and all(old is new for old, new in statistics):
        _log.warning(
            "The training step leaves every BatchNorm statistic unchanged: the module runs its norms in evaluation "
            "mode. Pass the mode on inside __call__ or compute_loss (train=train), or call Model.freeze if this is "
            "intended."
        )
