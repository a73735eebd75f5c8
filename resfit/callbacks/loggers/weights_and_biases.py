"""Numbers for a Weights & Biases run."""

import datetime
from typing import Any

from resfit._utils.optional_import import load_package
from resfit.callbacks import first_process
from resfit.callbacks.loggers.metric_logger import MetricLogger, Moment, scalars
from resfit.callbacks.logs import Logs
from resfit.errors import CallbackError


class WeightsAndBiases(MetricLogger):
    """Logs to a run of Weights & Biases: `epoch/loss` and so on over `epoch/epoch`, `batch/loss` over `batch/step`.

    Epochs also have `epoch/learning_rate`, `epoch/images_per_second`, and `epoch/data_wait`, the share of the time in
    which the device waited for data. Batches are logged some steps later, when the device has them.
    The run is yours: begin it with `wandb.init`, which knows project, name, mode and how to resume, and finish it when
    it has all that you want in it. With several processes, the first logs, and only there a run is needed.

    Args:
      run: what `wandb.init` returned; by default the one that is active when `fit` begins.
      every: "epoch"; or a number of steps or a datetime.timedelta, to log batches as well.

    Raises:
      CallbackError: at the beginning of `fit`, if there is no run.
      MissingPackageError: there too, without wandb.

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
                "WeightsAndBiases found no active run. Expected one: call wandb.init(project=...) before fit, or pass "
                "what it returns as WeightsAndBiases(run=...)."
            )
        # Axes of their own: a resumed run logs its steps again, and W&B's own counter never goes back.
        self._run.define_metric("epoch/*", step_metric="epoch/epoch")
        self._run.define_metric("batch/*", step_metric="batch/step")

    def write(self, moment: Moment, values: dict[str, Any]) -> None:
        if moment.batch is None:
            values = values | self.figures | {"epoch": moment.epoch}
        else:
            values = values | {"step": moment.step}
        prefix = "epoch" if moment.batch is None else "batch"
        self._run.log({f"{prefix}/{name}": value for name, value in scalars(values).items()})
