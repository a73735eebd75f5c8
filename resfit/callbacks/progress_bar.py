"""A callback that shows progress: a live bar in a terminal or notebook, else one line per epoch."""

import collections
import sys
import time
from typing import TYPE_CHECKING, Any

from resfit.callbacks.base import Callback
from resfit.callbacks.logs import LazyLogs, Logs

if TYPE_CHECKING:
    import rich.console
    import rich.progress

_REDRAW_SECONDS = 0.1


class ProgressBar(Callback):
    """A callback that shows epoch, step, images per second, time left, loss and metrics.

    `fit`, `evaluate` and `predict` add a progress bar. A `fit` that compiles its step prints once how long the first
    step took.

    The bar shows the newest values that the device has finished. It never waits for the device, and its cost is below
    what can be measured.

    Args:
      verbose: 1 for a bar in a terminal or notebook, and one line per epoch anywhere else; 2 for one line per epoch.
      console: the console to write to; the standard output by default.

    Example:
      >>> bar = ProgressBar(verbose=2)
    """

    def __init__(self, verbose: int = 1, console: "rich.console.Console | None" = None) -> None:
        import rich.console

        self._console = console or rich.console.Console(file=sys.stdout)
        interactive = self._console.is_terminal or self._console.is_jupyter
        self._live = verbose == 1 and interactive
        self._training = False
        self._progress: rich.progress.Progress | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_console": None, "_progress": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import rich.console

        vars(self).update(state, _console=rich.console.Console(file=sys.stdout))

    # --- fit ----------------------------------------------------------------------------------------------------------

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._training = True
        self._told_of_first_step = False

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._begin(f"Epoch {epoch + 1}/{self.params['epochs']}", self.params["steps"])

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._advance(batch, logs)
        self._tell_of_first_step()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self._tell_of_first_step()
        self._end(dict(logs or {}))

    def on_train_end(self, logs: Logs | None = None) -> None:
        self._training = False
        self._stop()

    # --- evaluate and predict; a validation inside fit is shown in the line of its epoch ------------------------------

    def on_test_begin(self, logs: Logs | None = None) -> None:
        if self._training:
            self._pause()
            if self._progress is not None:
                self._progress.update(self._task, completed=self._done)
            self._status("validating")
        else:
            self._begin("Evaluate", self.params["steps"])

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        if not self._training:
            self._advance(batch, logs)

    def on_test_end(self, logs: Logs | None = None) -> None:
        if self._training:
            self._resume()
            self._status("")
        else:
            self._end(dict(logs or {}))
            self._stop()

    def on_predict_begin(self, logs: Logs | None = None) -> None:
        self._begin("Predict", self.params["steps"])

    def on_predict_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._advance(batch, None)

    def on_predict_end(self, logs: Logs | None = None) -> None:
        self._end({})
        self._stop()

    def on_exception(self, exception: BaseException) -> None:
        self._stop()

    def on_compile_begin(self, what: str) -> None:
        self._pause()
        self._status("compiling")

    def on_compile_end(self, what: str) -> None:
        self._resume()
        self._status("")

    def _tell_of_first_step(self) -> None:
        """Print the time of the first step, once `History` knows it."""
        if self._told_of_first_step:
            return
        timings = self.model.history.timings if self.model.history is not None else {}
        if "first_step_seconds" in timings:
            self._told_of_first_step = True
            self._console.print(
                f"first step after {timings['first_step_seconds']:.1f} s, "
                f"{timings['first_step_compile_seconds']:.1f} s of it compiling",
                highlight=False,
                soft_wrap=True,
            )

    # --- drawing ------------------------------------------------------------------------------------------------------

    def _begin(self, title: str, steps: int | None) -> None:
        self._title, self._steps = title, steps
        self._start = time.perf_counter()
        self._paused = self._pause_began = 0.0
        self._pauses = 0
        self._drawn = 0.0
        self._images = self._done = 0
        self._shown = ""
        self._waiting: collections.deque[tuple[int, int, LazyLogs]] = collections.deque()
        if self._live:
            if self._progress is None:
                self._progress = _progress(self._console)
                self._progress.start()
            self._task = self._progress.add_task(title, total=steps, rate="", values="")

    def _advance(self, batch: int, logs: Logs | None) -> None:
        if isinstance(logs, LazyLogs):
            self._images += logs.examples
        self._done = batch + 1
        if self._progress is None:
            return
        if isinstance(logs, LazyLogs):
            self._waiting.append((batch + 1, self._images, logs))
        now = time.perf_counter()
        if now - self._drawn < _REDRAW_SECONDS and batch + 1 != self._steps:
            if len(self._waiting) > 64:
                self._waiting.popleft()
            return
        self._drawn = now
        done, images = batch + 1, self._images
        newest = None
        while self._waiting and self._waiting[0][2].ready():
            done, images, newest = self._waiting.popleft()
        if newest is not None:
            self._shown = _format(dict(newest))
        elif logs is not None:
            return  # the device has finished no step since the last redraw
        self._progress.update(self._task, completed=done, rate=self._rate(images), values=self._shown)

    # The images per second leave out compilation and validation. Both can nest.
    def _pause(self) -> None:
        self._pauses += 1
        if self._pauses == 1:
            self._pause_began = time.perf_counter()

    def _resume(self) -> None:
        self._pauses -= 1
        if self._pauses == 0:
            self._paused += time.perf_counter() - self._pause_began

    def _rate(self, images: int) -> str:
        seconds = time.perf_counter() - self._start - self._paused
        return f"{images / seconds:,.0f} images/s" if images and seconds > 0 else ""

    def _status(self, text: str) -> None:
        if self._progress is not None:
            self._progress.update(self._task, values=text or self._shown)

    def _end(self, values: dict[str, Any]) -> None:
        seconds = time.perf_counter() - self._start
        rate = self._rate(self._images)
        text = _format(values)
        if self._progress is not None:
            total = self._done if self._steps is None else self._steps
            self._progress.update(self._task, total=total, completed=self._done, rate=rate, values=text)
            self._progress.stop_task(self._task)
            self._progress.stop()
            self._progress = None  # the finished bar stays on the screen, and the next epoch starts a new one below it
            return
        self._console.print(
            *[part for part in (self._title, f"{seconds:.1f}s", rate, text) if part],
            sep=" - ",
            highlight=False,
            soft_wrap=True,
        )

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _progress(console: "rich.console.Console") -> "rich.progress.Progress":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[values]}"),
        console=console,
        refresh_per_second=10,
    )


def _format(values: dict[str, Any]) -> str:
    return " - ".join(f"{name}: {value:.4f}" for name, value in values.items() if isinstance(value, float))
