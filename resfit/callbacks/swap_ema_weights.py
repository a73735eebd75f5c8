"""A callback that validates and saves with the averaged weights."""

import logging
from typing import Any

import jax
from flax import nnx

from resfit.callbacks.base import Callback
from resfit.callbacks.logs import Logs

_log = logging.getLogger("resfit")


class SwapEMAWeights(Callback):
    """A callback that validates with the averaged weights of `compile(ema=...)`, as in Keras.

    Callbacks that judge such a validation use the averages: `EarlyStopping(restore_best_weights=True)` restores the
    averages, and `ModelCheckpoint(save_best_only=True)` writes the averages. After `fit` the module holds the trained
    weights, unless `EarlyStopping` restored others. Keras's `use_ema` puts the averages into the module at the end of
    `fit`; here `model.set_weights(model.get_weights("ema"))` does.

    Args:
      swap_on_epoch: if True, the module also holds the averages between the end of an epoch and the beginning of the
        next one, for the callbacks after this one. If a callback sets other weights meanwhile (`model.set_weights`),
        those stay.

    Raises:
      CompileError: at the beginning of training, if the model keeps no averages.

    Example:
      >>> callbacks = [SwapEMAWeights(swap_on_epoch=True)]
    """

    def __init__(self, swap_on_epoch: bool = False) -> None:
        self.swap_on_epoch = swap_on_epoch
        self._trained: list[Any] | None = None  # while the module holds the averages
        self._swapped_in: list[jax.Array] = []  # the parameters of the module right after the swap
        self._before = "raw"
        self._fitting = False

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.model.get_weights("ema")  # without averages, raise now and not after the first epoch
        self._trained = None
        self._before = self.model.validation_weights
        self.model.validation_weights = "ema"
        self._fitting = True

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._swap_back()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self.swap_on_epoch:
            self._trained = self.model.control.trained_weights()
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
                "SwapEMAWeights received a call of %s outside fit, where it has no effect. Expected fit. To use the "
                "averages, pass %s(..., weights='ema').", method, method,
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return the trained weights, while the module holds the averages."""
        return {"trained": self._trained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a result of `state_dict`."""
        self._trained, self._swapped_in = state["trained"], self._parameters()

    def _swap_back(self) -> None:
        trained, self._trained = self._trained, None
        # Another callback, such as EarlyStopping, may have replaced all arrays since the swap.
        if trained is not None and any(
            now is then for now, then in zip(self._parameters(), self._swapped_in, strict=True)
        ):
            self.model.control.restore_trained_weights(trained)

    def _parameters(self) -> list[jax.Array]:
        return jax.tree.leaves(nnx.state(self.model.module, nnx.Param))
