"""A callback that logs to Weights & Biases."""

import datetime
from typing import Any

from resfit._utils.optional_import import load_package
from resfit.callbacks import first_process
from resfit.callbacks.loggers.metric_logger import MetricLogger, Moment, scalars
from resfit.callbacks.logs import Logs
from resfit.errors import CallbackError


class WeightsAndBiases(MetricLogger):
    """A callback that logs to a run of Weights & Biases.

    Names are `epoch/loss` and so on over `epoch/epoch`, and `batch/loss` and so on over `batch/step`. Epochs also have
    `epoch/learning_rate`, `epoch/images_per_second` and `epoch/data_wait`, the share of the time in which the device
    waited for data. A batch is logged once the device has finished it, a few steps later.

    You begin the run with `wandb.init`, which takes project, name, mode and how to resume, and you finish it. With
    several processes, the first one logs, and only that process needs a run.

    Args:
      run: the result of `wandb.init`; by default the run that is active when `fit` begins.
      every: "epoch", or a number of steps or a datetime.timedelta to log batches too.

    Raises:
      CallbackError: at the beginning of `fit`, if there is no run.
      MissingPackageError: at the beginning of `fit`, if wandb is not installed.

    Example:
      >>> callback = WeightsAndBiases(every=100)  # after wandb.init(project="digits")
    """

    def __init__(self, run: Any = None, every: str | int | datetime.timedelta = "epoch") -> None:
        super().__init__(every)
        self._given = self._run = run

    def on_train_begin(self, logs: Logs | None = None) -> None:
        super().on_train_begin(logs)
        if not first_process.is_first():
            return
        if self._given is None:
            self._run = load_package("wandb", "WeightsAndBiases", "pip install wandb").run
        if self._run is None:
            raise CallbackError(
                "WeightsAndBiases found no active run. Expected one. Call wandb.init(project=...) before fit, or pass "
                "its result as WeightsAndBiases(run=...)."
            )
        # Separate axes: a resumed run logs steps again, and the counter of W&B never goes back.
        self._run.define_metric("epoch/*", step_metric="epoch/epoch")
        self._run.define_metric("batch/*", step_metric="batch/step")

    def write(self, moment: Moment, values: dict[str, Any]) -> None:
        if moment.batch is None:
            values = values | self.figures | {"epoch": moment.epoch}
        else:
            values = values | {"step": moment.step}
        prefix = "epoch" if moment.batch is None else "batch"
        self._run.log({f"{prefix}/{name}": value for name, value in scalars(values).items()})
