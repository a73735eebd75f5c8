"""A callback that averages the weights of the last epochs."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from resfit._utils.checks import int_from, is_number
from resfit.callbacks.base import Callback
from resfit.callbacks.learning_rate_checks import require_settable
from resfit.callbacks.logs import Logs
from resfit.errors import CallbackError


class StochasticWeightAveraging(Callback):
    """A callback that replaces the weights at the end of `fit` by their equal average over the last epochs.

    The weights after each epoch from `start_epoch` on have the same share, summed on the host in float64. Use a
    learning rate that stays high in these epochs. The average includes the BatchNorm statistics, which do not describe
    the averaged network: call `resfit.recalibrate(model, x)` after `fit`. Validation and other callbacks see the
    trained weights. `compile(ema=...)` averages after every step instead, with weights that decay.

    Source: Izmailov et al. (arXiv 1803.05407).

    Args:
      start_epoch: the first epoch whose weights count, counted from 0.
      learning_rate: the constant learning rate from `start_epoch` on; None keeps that of the model. The model must
        have a number as its learning rate, and no schedule.

    Attributes:
      count: the number of epochs in the average.

    Raises:
      CallbackError: for a negative epoch; at the beginning of training, if the run has no such epoch, or if the
        learning rate cannot be set.

    Example:
      >>> callbacks = [StochasticWeightAveraging(start_epoch=15, learning_rate=0.05)]
    """

    def __init__(self, start_epoch: int, learning_rate: float | None = None) -> None:
        self.start_epoch = int_from(0, "start_epoch", start_epoch, CallbackError, "a number of epochs, 0 or more")
        if learning_rate is not None and not (
            is_number(learning_rate) and math.isfinite(learning_rate) and learning_rate > 0
        ):
            raise CallbackError(
                f"StochasticWeightAveraging got learning_rate={learning_rate!r}. Expected a positive number, such as "
                "0.05, or None to keep the learning rate of the model."
            )
        self.learning_rate = learning_rate
        self._reset()

    def _reset(self) -> None:
        self.count = 0
        self._sums: list[np.ndarray] | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._reset()
        if self.start_epoch >= self.params["epochs"]:
            raise CallbackError(
                f"StochasticWeightAveraging got start_epoch={self.start_epoch}, and fit trains {self.params['epochs']} "
                "epochs, counted from 0. Expected an epoch of the run, such as the first one of its last quarter."
            )
        if self.learning_rate is not None:
            require_settable(self.model, "StochasticWeightAveraging")

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        if epoch >= self.start_epoch and not self.count and self.learning_rate is not None:
            self.model.learning_rate = self.learning_rate

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if epoch < self.start_epoch:
            return
        weights = self.model.get_weights()
        wide = [w.astype(np.float64) if _is_float(w) else w for w in weights]
        before = self._sums
        self._sums = wide if before is None else [
            old + new if _is_float(old) else new for old, new in zip(before, wide, strict=True)
        ]  # fmt: skip
        self.count += 1

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self._sums is not None:
            averages = self.model.get_weights("ema") if self.model.keeps_averages else None
            self.model.set_weights([w / self.count if _is_float(w) else w for w in self._sums], averages)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the weights."""
        return {"count": self.count, "sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a result of `state_dict`."""
        self.count, self._sums = state["count"], state["sums"]


def _is_float(array: np.ndarray) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating))
