"""A callback that writes logs to a CLU metric writer."""

import datetime
from typing import Any

from resfit.callbacks.loggers.metric_logger import MetricLogger, Moment, scalars
from resfit.errors import CallbackError


class CLUMetricWriter(MetricLogger):
    """A callback that writes logs to a metric writer of Google's CLU, over training steps.

    Names are `epoch/loss`, `batch/loss` and so on. Epochs also have `epoch/learning_rate`, `epoch/images_per_second`
    and `epoch/data_wait`, the share of the time in which the device waited for data. A batch is written once the device
    has finished it, a few steps later. The callback flushes the writer after every epoch; you close the writer.

    resfit imports no package for this. `clu.metric_writers` needs TensorFlow, but any object with the same methods
    works.

    Args:
      writer: an object with `write_scalars(step, {name: number})` and `flush()`, such as a
        `clu.metric_writers.MetricWriter`.
      every: "epoch", or a number of steps or a datetime.timedelta to write batches too.

    Raises:
      CallbackError: if the writer lacks one of the two methods.

    Example:
      >>> class Printer:
      ...     def write_scalars(self, step, scalars):
      ...         print(step, scalars)
      ...
      ...     def flush(self):
      ...         pass
      >>> callback = CLUMetricWriter(Printer(), every=100)
    """

    def __init__(self, writer: Any, every: str | int | datetime.timedelta = "epoch") -> None:
        super().__init__(every)
        missing = [name for name in ("write_scalars", "flush") if not callable(getattr(writer, name, None))]
        if missing:
            raise CallbackError(
                f"The writer, a {type(writer).__name__}, has no {' and no '.join(missing)}. Expected a "
                "clu.metric_writers.MetricWriter, or an object with write_scalars(step, scalars) and flush()."
            )
        self._writer = writer

    def write(self, moment: Moment, values: dict[str, Any]) -> None:
        prefix = "batch"
        if moment.batch is None:
            prefix = "epoch"
            values = values | self.figures
        self._writer.write_scalars(moment.step, {f"{prefix}/{name}": value for name, value in scalars(values).items()})
        if moment.batch is None:
            self._writer.flush()
