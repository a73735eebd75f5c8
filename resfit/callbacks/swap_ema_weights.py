"""Validation, and files, with the averaged weights."""

from typing import Any

from resfit.engine.hooks import Callback, Logs


class SwapEMAWeights(Callback):
    """Validates with the averaged weights instead of the ones in training; see `compile(ema=...)`. Keras's name.

    Args:
      swap_on_epoch: the module also holds the averaged weights from the end of an epoch, for callbacks that come after
        this one (a `ModelCheckpoint` saves them), until the next epoch or the end of training.

    Raises:
      CompileError: at the beginning of training, if the model keeps no average.

    Example:
      >>> callbacks = [SwapEMAWeights(swap_on_epoch=True)]
    """

    def __init__(self, swap_on_epoch: bool = False) -> None:
        self._swap_on_epoch = swap_on_epoch
        self._trained: list[Any] | None = None
        self._before = "raw"

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.model.get_weights("ema")  # raises now rather than after the first epoch
        self._before = self.model.validation_weights
        self.model.validation_weights = "ema"

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._swap_back()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self._swap_on_epoch:
            self._trained = self.model.get_weights()
            self.model.set_weights(self.model.get_weights("ema"))

    def on_train_end(self, logs: Logs | None = None) -> None:
        self._swap_back()
        self.model.validation_weights = self._before

    def state_dict(self) -> dict[str, Any]:
        """The weights in training, while the module holds the averaged ones."""
        return {"trained": self._trained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._trained = state["trained"]

    def _swap_back(self) -> None:
        if self._trained is not None:
            self.model.set_weights(self._trained)
            self._trained = None
