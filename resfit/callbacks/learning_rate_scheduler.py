"""A callback that sets the learning rate by a function of the epoch or the step."""

import inspect
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from resfit._utils.checks import is_int
from resfit.callbacks.base import Callback
from resfit.callbacks.every import Every
from resfit.callbacks.learning_rate_checks import require_settable
from resfit.callbacks.logs import Logs
from resfit.errors import CallbackError

_log = logging.getLogger("resfit")


class LearningRateScheduler(Callback):
    """A callback that sets the learning rate before every epoch, or every few steps. Nothing is recompiled.

    The logs of an epoch gain `learning_rate`, the value at the end of the epoch. If `every` is a number of steps, the
    logs of batches gain it too. For a schedule that is known before training, `compile(learning_rate=schedule)` is
    simpler and runs inside the compiled step.

    Args:
      schedule: a function (epoch) or (epoch, learning rate) -> learning rate. Epochs are counted from zero. The
        function receives the learning rate if its second parameter has no default, or is named `lr` or
        `learning_rate`. The schedules of optax work.
      verbose: 1 logs each change.
      every: "epoch", as in Keras, or a number of steps. For steps, the function receives the number of training steps
        done instead of the epoch. The count of steps continues in a second `fit` with the same object; the first `fit`
        starts at the first step of its `initial_epoch`.

    Raises:
      CallbackError: if `schedule` is not a function of one or two arguments or returns anything but a number of 0 or
        more; at the beginning of `fit`, if the learning rate of the model cannot be set.

    Example:
      >>> halved = LearningRateScheduler(lambda epoch, rate: rate / 2 if epoch % 10 == 9 else rate)
      >>> warmup = LearningRateScheduler(lambda step: 0.1 * min(1, (step + 1) / 500), every=1)
    """

    def __init__(self, schedule: Callable[..., Any], verbose: int = 0, every: str | int = "epoch") -> None:
        if not callable(schedule):
            raise CallbackError(
                f"Expected schedule to be a function (epoch) or (epoch, learning rate), got {schedule!r}."
            )
        if every != "epoch" and not is_int(every, 1):
            raise CallbackError(f"Expected every to be 'epoch' or a positive number of steps, got {every!r}.")
        self.schedule = schedule
        self._takes_rate = _takes_rate(schedule)
        self.verbose = verbose
        self._per_step = every != "epoch"
        self._every = Every(every, "LearningRateScheduler")
        self._steps: int | None = None  # None until the first epoch begins
        self._rate = 0.0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        require_settable(self.model, "LearningRateScheduler")

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        # Another callback may have set the learning rate. The device is idle between epochs, so reading is free.
        self._rate = self.model.learning_rate
        if self._steps is None:
            self._steps = epoch * (self.params["steps"] or 0)
        if not self._per_step:
            self._set(epoch, "epoch")

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        steps = self._steps or 0
        if self._per_step and self._every.due(steps):
            self._set(steps, "step")

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._steps = (self._steps or 0) + 1
        if self._per_step and logs is not None:
            logs["learning_rate"] = self._rate

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if logs is not None:
            logs["learning_rate"] = self.model.learning_rate

    def _set(self, count: int, unit: str) -> None:
        value = self.schedule(count, self._rate) if self._takes_rate else self.schedule(count)
        rate = _number(value)
        if rate == self._rate:
            return
        self._rate = self.model.learning_rate = rate
        if self.verbose:
            _log.warning("LearningRateScheduler: learning rate %g from %s %d.", rate, unit, count)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]


def _number(value: Any) -> float:
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "fiu" or not math.isfinite(array) or array < 0:
        raise CallbackError(
            f"The schedule of LearningRateScheduler returned {value!r}. Expected a learning rate: a finite number of 0 "
            "or more."
        )
    return float(array)


def _takes_rate(schedule: Callable[..., Any]) -> bool:
    # Keras tries two arguments first, which passes the learning rate to any option that comes second.
    try:
        parameters = inspect.signature(schedule).parameters.values()
    except ValueError:  # some functions written in C have no signature
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if required > 2 or not (positional or variadic):
        raise CallbackError(
            f"The schedule {schedule!r} takes {required} arguments. Expected a function of (epoch) or (epoch, learning "
            "rate)."
        )
    return required == 2 or (len(positional) > 1 and positional[1].name in ("lr", "learning_rate"))
