"""A trace of some training steps, for TensorBoard's profile page or Perfetto."""

import logging
import os
from typing import cast

import jax

from resfit._utils.paths import expand_user
from resfit.callbacks import first_process
from resfit.callbacks.base import Callback
from resfit.callbacks.logs import LazyLogs, Logs, batch_losses
from resfit.errors import CallbackError

_log = logging.getLogger("resfit")


class Profiler(Callback):
    """Records what host and device do in some training steps, with jax.profiler.

    The steps before are waited for where the trace begins, and those in it where it ends, so that it holds exactly the
    steps that were asked for, each marked as one. The rest of the run is not slowed down. With several processes,
    the first is traced.

    Args:
      log_dir: where the trace goes; `tensorboard --logdir` on it (with tensorboard-plugin-profile) or
        https://ui.perfetto.dev shows it.
      start: the first step in the trace, counted from zero from the beginning of `fit`. By default some steps after
        compiling.
      stop: the first step that is no longer in it.

    Raises:
      CallbackError: unless 0 <= start < stop.

    Example:
      >>> callback = Profiler("logs/profile", start=100, stop=105)
    """

    def __init__(self, log_dir: str | os.PathLike[str], start: int = 10, stop: int = 15) -> None:
        if not 0 <= start < stop:
            raise CallbackError(f"Expected 0 <= start < stop, got start={start} and stop={stop}.")
        self._log_dir = expand_user(log_dir)
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
                "Profiler: training ended after %d steps, before step %d, where the trace was to begin.",
                self._step,
                self._start,
            )
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
