"""Validation, and files, with the averaged weights."""

import logging
from typing import Any

import jax
from flax import nnx

from resfit.callbacks.base import Callback
from resfit.callbacks.logs import Logs

_log = logging.getLogger("resfit")


class SwapEMAWeights(Callback):
    """Validates with the averaged weights instead of the ones in training; see `compile(ema=...)`. Keras's name.

    Callbacks that judge a value of such a validation keep the averages: `EarlyStopping(restore_best_weights=True)`
    restores them, `ModelCheckpoint(save_best_only=True)` writes them. After `fit` the module holds the weights as
    trained, unless `EarlyStopping` restored others. `model.set_weights(model.get_weights("ema"))` then puts the
    averages into the module, which Keras's `use_ema` does at the end of every `fit`.

    Args:
      swap_on_epoch: the module also holds the averaged weights from the end of an epoch, for callbacks that come after
        this one, until the next epoch or the end of training. Weights that a callback sets meanwhile
        (`model.set_weights`) stay.

    Raises:
      CompileError: at the beginning of training, if the model keeps no average.

    Example:
      >>> callbacks = [SwapEMAWeights(swap_on_epoch=True)]
    """

    def __init__(self, swap_on_epoch: bool = False) -> None:
        self._swap_on_epoch = swap_on_epoch
        self._trained: list[Any] | None = None  # while the module holds the averages
        self._swapped_in: list[jax.Array] = []  # the parameters of the module at that time
        self._before = "raw"
        self._fitting = False

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.model.get_weights("ema")  # raises now rather than after the first epoch
        self._trained = None
        self._before = self.model.validation_weights
        self.model.validation_weights = "ema"
        self._fitting = True

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._swap_back()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self._swap_on_epoch:
            self._trained = self.model.get_weights()
            self.model.set_weights(self.model.get_weights("ema"))
            self._swapped_in = self._parameters()

    def on_train_end(self, logs: Logs | None = None) -> None:
        self._swap_back()
        self.model.validation_weights = self._before
        self._fitting = False

    def on_test_begin(self, logs: Logs | None = None) -> None:
        self._warn_outside_fit("evaluate")

    def on_predict_begin(self, logs: Logs | None = None) -> None:
        self._warn_outside_fit("predict")

    def _warn_outside_fit(self, method: str) -> None:
        if not self._fitting:
            _log.warning(
                "SwapEMAWeights got a call of %s outside fit, where it swaps nothing. Expected fit. To use the "
                "averages, pass %s(..., weights='ema').", method, method,
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """The weights in training, while the module holds the averaged ones."""
        return {"trained": self._trained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._trained, self._swapped_in = state["trained"], self._parameters()

    def _swap_back(self) -> None:
        trained, self._trained = self._trained, None
        # Another callback, such as EarlyStopping, may have replaced all arrays since.
        if trained is not None and any(
            now is then for now, then in zip(self._parameters(), self._swapped_in, strict=True)
        ):
            self.model.set_weights(trained, averages=self.model.get_weights("ema"))

    def _parameters(self) -> list[jax.Array]:
        return jax.tree.leaves(nnx.state(self.model.module, nnx.Param))
