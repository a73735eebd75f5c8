"""A callback that traces training steps for TensorBoard's profile page or Perfetto."""

import logging
import os
from typing import cast

import jax

from resfit._utils.paths import folder_path
from resfit.callbacks import first_process
from resfit.callbacks.base import Callback
from resfit.callbacks.logs import LazyLogs, Logs, batch_losses
from resfit.errors import CallbackError

_log = logging.getLogger("resfit")


class Profiler(Callback):
    """A callback that traces the host and the device during training steps `start` to `stop`, with jax.profiler.

    The host waits for the device at the beginning and at the end of the trace, so the trace holds exactly those steps,
    each with a mark. All other steps run at full speed. With several processes, the trace is of the first one.

    Args:
      log_dir: the folder of the trace. `tensorboard --logdir` (with tensorboard-plugin-profile) and
        https://ui.perfetto.dev show it.
      start: the first step of the trace, counted from zero at the beginning of `fit`. The default is a few steps after
        compilation.
      stop: the first step after the trace.

    Raises:
      CallbackError: unless 0 <= start < stop.

    Example:
      >>> callback = Profiler("logs/profile", start=100, stop=105)
    """

    def __init__(self, log_dir: str | os.PathLike[str], start: int = 10, stop: int = 15) -> None:
        if not 0 <= start < stop:
            raise CallbackError(f"Expected 0 <= start < stop, got start={start} and stop={stop}.")
        self._log_dir = str(folder_path(log_dir))
        self._start, self._stop = start, stop
        self._step = 0
        self._last: Logs | None = None
        self._tracing = False
        self._mark: jax.profiler.StepTraceAnnotation | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._step = 0
        self._last = None

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        if self._step == self._start and first_process.is_first():
            self._wait()
            jax.profiler.start_trace(self._log_dir)
            self._tracing = True
        if self._tracing:
            self._mark = jax.profiler.StepTraceAnnotation("train", step_num=self._step)
            self._mark.__enter__()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._unmark()
        self._step += 1
        self._last = logs if self._step in (self._start, self._stop) else None
        if self._step == self._stop and self._tracing:
            self._wait()
            self._end()

    def on_exception(self, exception: BaseException) -> None:
        self._unmark()
        self._end()

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self._step <= self._start:
            _log.warning(
                "Profiler: training ended after %d steps, before step %d, the first one of the trace. Pass a smaller "
                "start.", self._step, self._start,
            )  # fmt: skip
        self._unmark()
        self._end()

    def _wait(self) -> None:
        if self._last is not None:
            batch_losses([cast(LazyLogs, self._last)])
            self._last = None

    def _unmark(self) -> None:
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None

    def _end(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
