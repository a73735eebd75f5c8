"""What callbacks that watch one value share: which way is better, and by how much."""

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
_LOWER_IS_BETTER = ("loss", "error", "cross_entropy", "crossentropy", "mse", "mae")
_HIGHER_IS_BETTER = ("acc", "accuracy", "auc", "f1", "precision", "recall")


class Monitor:
    """Judges one value of the logs.

    Args:
      name: of the value, such as "val_loss".
      mode: "min", "max", or "auto" to tell by the name.
      min_delta: an improvement must be larger than this.

    Attributes:
      best: the best value so far, or None.

    Raises:
      CallbackError: if the mode is unknown, or "auto" does not know the name.

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
                    f"Cannot tell whether a lower or a higher {name!r} is better. Pass mode='min' or 'max'."
                )
        self.name = name
        self.best: float | None = None
        self._sign = 1.0 if mode == "max" else -1.0
        self._min_delta = abs(min_delta)

    def value(self, logs: Logs | None, who: str) -> float | None:
        """The value in the logs; None, with a warning that says what there is, if it is missing."""
        if logs is None or self.name not in logs:
            there = sorted(logs or {})
            remedy = did_you_mean(self.name, there)
            if self.name.startswith("val_") and not any(name.startswith("val_") for name in there):
                remedy = " Nothing was validated: pass validation_data to fit, or watch another one."
            _log.warning("%s watches %r, which is not in the logs; there are %s.%s", who, self.name, there, remedy)
            return None
        value = logs[self.name]
        if np.ndim(value) != 0:
            raise CallbackError(
                f"{who} watches {self.name!r}, which is an array of shape {np.shape(value)}. Expected one number: "
                "watch its mean over the classes, as a metric of its own."
            )
        return float(value)

    def beats(self, value: float, reference: float | None) -> bool:
        """Whether a value is better than a reference by more than min_delta. NaN is better than nothing."""
        if math.isnan(value):
            return False
        return reference is None or self._sign * (value - reference) > self._min_delta

    def improves(self, value: float) -> bool:
        """Whether a value is better than the best so far; if so it becomes the best."""
        if not self.beats(value, self.best):
            return False
        self.best = value
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.best = state["best"]


def measured_weights(model: TrainedModel, names: Iterable[str]) -> str:
    """Return which weights the values with these names were measured with: "raw" or "ema".

    A validation measures `model.validation_weights`; the loss and metrics of training belong to the raw weights.
    """
    return model.validation_weights if any(name.startswith("val_") for name in names) else "raw"
