"""Batches that a thread puts on the devices before the step needs them."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from resfit._utils.checks import positive_int
from resfit.data.batches import Batch, Batches, check_end, whole_epoch
from resfit.data.device import DeviceSource
from resfit.data.indexed import IndexedBatches
from resfit.data.mapped import MappedBatches
from resfit.data.streaming.ahead import close, prefetch
from resfit.errors import DataError
from resfit.trainer.devices.placement import Placement

_AHEAD = 2  # batches on the device besides those of the steps in flight


def fed(batches: Batches, placement: Placement, *, in_step: bool = False) -> Batches:
    """Return batches that a thread gathers, checks and transfers, so that the main thread only hands over steps.

    On a CPU nothing is transferred, and the main thread has time while the steps run: the batches stay as they are. So
    do those whose position is the loader's own, because the loader must not be ahead of a checkpoint, and those of a
    dataset on the device of the steps, if these gather their batches: only the numbers of the rows are transferred.

    Args:
      batches: the data.
      placement: the devices.
      in_step: True if the steps can gather their batches from a dataset on the device, see `trainer.several_steps`.
    """
    if isinstance(batches, IndexedBatches) and isinstance(batches.source, DeviceSource):
        batches.source.in_step = in_step and placement.kind == "jit"
        if batches.source.in_step:
            return batches
    ahead = placement.feeds_ahead and getattr(batches, "random_access", False)
    return _Fed(batches, placement.put) if ahead else batches


@contextlib.contextmanager
def one_pass(batches: Batches, placement: Placement, steps: int | None) -> Iterator[Iterator[Batch]]:
    """Iterate over the batches of `fed`, or the first `steps` of them; at the end of the block no thread reads on.

    Args:
      batches: the data.
      placement: the devices.
      steps: the number of batches; None for all.
    """
    if steps is not None:
        positive_int("steps", steps, DataError, "a positive integer, or None for all batches")
    check_end(batches, steps, "steps")
    data = fed(batches, placement)
    iterator = data.epoch(0)
    try:
        yield whole_epoch(data, 0, itertools.islice(iterator, steps))
    finally:
        close(iterator)


class _Fed(MappedBatches):
    def __init__(self, batches: Batches, put: Callable[[Any], Any]) -> None:
        super().__init__(batches, {})
        self._put = put

    def _map(self, batch: Batch) -> Batch:
        x, y, weight, mask, origin = self._put((batch.x, batch.y, batch.weight, batch.mask, batch.origin))
        return Batch(x, y, weight, mask, batch.size, origin)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        return prefetch(super().epoch(epoch, start), _AHEAD)
