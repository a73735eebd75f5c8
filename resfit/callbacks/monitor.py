"""The comparison of one monitored value, shared by several callbacks."""

import logging
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from resfit._utils.suggest import did_you_mean
from resfit.callbacks.base import TrainedModel
from resfit.callbacks.logs import Logs
from resfit.errors import CallbackError

_log = logging.getLogger("resfit")
_LOWER_IS_BETTER = (
    "loss",
    "error",
    "cross_entropy",
    "crossentropy",
    "mse",
    "mae",
    "mape",
    "msle",
    "huber",
    "log_cosh",
    "hinge",
    "kl_divergence",
    "poisson",
)
_HIGHER_IS_BETTER = ("acc", "accuracy", "auc", "f1", "precision", "recall", "cosine_similarity")


class Monitor:
    """A monitored value of the logs, with its best value so far.

    Args:
      name: the name of the value, such as "val_loss".
      mode: "min", "max", or "auto" to infer the direction from the name.
      min_delta: the smallest change that counts as an improvement; the change must be larger.

    Attributes:
      mode: "min" or "max".
      best: the best value so far, or None.

    Raises:
      CallbackError: for an unknown mode, or if "auto" does not know the name.

    Example:
      >>> monitor = Monitor("val_accuracy")
      >>> monitor.improves(0.5), monitor.improves(0.4), monitor.best
      (True, False, 0.5)
    """

    def __init__(self, name: str, mode: str = "auto", min_delta: float = 0.0) -> None:
        if mode not in ("auto", "min", "max"):
            raise CallbackError(f"Unknown mode {mode!r} for {name!r}. Expected 'auto', 'min' or 'max'.")
        if mode == "auto":
            base = name.removeprefix("val_")
            if base.endswith(_LOWER_IS_BETTER):
                mode = "min"
            elif base.endswith(_HIGHER_IS_BETTER):
                mode = "max"
            else:
                raise CallbackError(
                    f"mode='auto' does not know if a lower or a higher {name!r} is better. Pass mode='min' or 'max'."
                )
        self.name = name
        self.best: float | None = None
        self.mode = mode
        self._sign = 1.0 if mode == "max" else -1.0
        self._min_delta = abs(min_delta)

    def value(self, logs: Logs | None, who: str) -> float | None:
        """Return the value in the logs, or None if the logs lack the name; a warning then lists the names."""
        if logs is None or self.name not in logs:
            there = sorted(logs or {})
            remedy = did_you_mean(self.name, there)
            if self.name.startswith("val_") and not any(name.startswith("val_") for name in there):
                remedy = " There was no validation: pass validation_data to fit, or monitor another value."
            _log.warning(
                "%s monitors %r, which is not in the logs. Expected one of %s.%s", who, self.name, there, remedy
            )
            return None
        value = logs[self.name]
        if np.ndim(value) != 0:
            raise CallbackError(
                f"{who} monitors {self.name!r}, which is an array of shape {np.shape(value)}. Expected one number. Add "
                "the mean over the classes as a metric and monitor it."
            )
        return float(value)

    def beats(self, value: float, reference: float | None) -> bool:
        """Return True if a value is better than a reference by more than min_delta. NaN is never better."""
        if math.isnan(value):
            return False
        return reference is None or self._sign * (value - reference) > self._min_delta

    def improves(self, value: float) -> bool:
        """Return True if a value is better than the best so far, and make it the best."""
        if not self.beats(value, self.best):
            return False
        self.best = value
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a resumed run."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a result of `state_dict`."""
        self.best = state["best"]


def measured_weights(model: TrainedModel, names: Iterable[str]) -> str:
    """Return the kind of weights that the values with these names were measured with: "raw" or "ema".

    A validation measures `model.validation_weights`; the loss and metrics of training belong to the raw weights.
    """
    return model.validation_weights if any(name.startswith("val_") for name in names) else "raw"
