"""A callback for resfit that records the best epochs of a run."""

from collections.abc import MutableMapping
from typing import Any

from resfit.callbacks import Callback

__all__ = ["BestEpochs"]


class BestEpochs(Callback):
    """A record of the epochs with the lowest values.

    Args:
      monitor: name of the value; lower is better. Epochs without the value are skipped.
      count: number of epochs to record.

    Attributes:
      best: (value, epoch) pairs, the best first; epochs count from zero.

    Raises:
      ValueError: if `count` is not positive.

    Example:
      >>> callback = BestEpochs(count=2)
      >>> for epoch, loss in enumerate([3.0, 1.0, 2.0]):
      ...     callback.on_epoch_end(epoch, {"loss": loss})
      >>> callback.best
      [(1.0, 1), (2.0, 2)]
    """

    def __init__(self, monitor: str = "loss", count: int = 3) -> None:
        if count < 1:
            raise ValueError(f"Expected count to be a positive number of epochs, got {count}.")
        self.monitor = monitor
        self.count = count
        self.best: list[tuple[float, int]] = []

    def on_train_begin(self, logs: MutableMapping[str, Any] | None = None) -> None:
        self.best = []

    def on_epoch_end(self, epoch: int, logs: MutableMapping[str, Any] | None = None) -> None:
        if logs is not None and self.monitor in logs:
            self.best = sorted([*self.best, (logs[self.monitor], epoch)])[: self.count]

    def state_dict(self) -> dict[str, Any]:
        return {"best": [list(pair) for pair in self.best]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = [(value, epoch) for value, epoch in state["best"]]
