"""A callback that shows progress: a table of the epochs, and the line of the running epoch."""

import collections
import sys
import time
from typing import TYPE_CHECKING, Any

from resfit.callbacks.base import Callback
from resfit.callbacks.display.line import Line
from resfit.callbacks.display.screens import Notebook, Screen, Terminal
from resfit.callbacks.display.text import numbers
from resfit.callbacks.display.time_left import TimeLeft
from resfit.callbacks.logs import LazyLogs, Logs

if TYPE_CHECKING:
    import rich.console

_REDRAW_SECONDS = 0.1


class ProgressBar(Callback):
    """A callback that shows a table with a row per epoch, and a line for the running epoch.

    `fit`, `evaluate` and `predict` add a progress bar. The line shows the step, the time left in the epoch and in the
    run, loss, metrics and images per second. In a narrow terminal, the bar and the images per second go first, then the
    times; epoch, loss and accuracy stay. A notebook shows an HTML table, which stays in the saved notebook. A `fit`
    that compiles its step states once how long the first step took.

    The line shows the newest values that the device has finished. It never waits for the device, and its cost is below
    what can be measured.

    Args:
      verbose: 1 for a line of the running epoch in a terminal or notebook; 2 for finished epochs only, as in a log file
        or a pipe, where the table has no control characters and 80 columns.
      console: the console to write to; the standard output by default.

    Example:
      >>> bar = ProgressBar(verbose=2)
    """

    def __init__(self, verbose: int = 1, console: "rich.console.Console | None" = None) -> None:
        self._verbose = verbose
        self._time = TimeLeft()
        self._training = False
        self._screen = self._screen_of(console)

    def _screen_of(self, console: "rich.console.Console | None") -> Screen:
        import rich.console

        console = console or rich.console.Console(file=sys.stdout)
        if console.is_jupyter:
            return Notebook()
        return Terminal(console, live=self._verbose == 1 and console.is_terminal)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_screen": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._screen = self._screen_of(None)

    # --- fit ----------------------------------------------------------------------------------------------------------

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._training = True
        self._told_of_first_step = False
        self._time = TimeLeft()

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        epochs = self.params["epochs"]
        self._epoch = f"{epoch + 1:{len(str(epochs))}}/{epochs}"
        self._begin(f"Epoch {self._epoch}", epochs - epoch - 1)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._advance(batch, logs)
        self._tell_of_first_step()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self._tell_of_first_step()
        line = self._line
        self._time.end_epoch()
        line.done, line.images = self._done, self._images
        if line.steps is not None and self._done < line.steps:
            self._screen.note(f"{line.title} stopped after {self._done}/{line.steps} steps")
        rate = {"images/s": text} if (text := line.images_per_second) else {}
        seconds = time.perf_counter() - self._start
        self._screen.row(line, {"epoch": self._epoch, **numbers(dict(logs or {})), "time": f"{seconds:.1f} s", **rate})

    def on_train_end(self, logs: Logs | None = None) -> None:
        self._training = False
        self._screen.stop()

    # --- evaluate and predict; a validation inside fit is shown in the line of its epoch ------------------------------

    def on_test_begin(self, logs: Logs | None = None) -> None:
        if self._training:
            self._time.validate(begins=True)
            self._line.done = self._done
            self._status("validating")
        else:
            self._begin("Evaluate")

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        if not self._training:
            self._advance(batch, logs)

    def on_test_end(self, logs: Logs | None = None) -> None:
        if self._training:
            self._time.validate(begins=False)
            self._status("")
        else:
            self._finish(logs)

    def on_predict_begin(self, logs: Logs | None = None) -> None:
        self._begin("Predict")

    def on_predict_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._advance(batch, None)

    def on_predict_end(self, logs: Logs | None = None) -> None:
        self._finish(None)

    def on_exception(self, exception: BaseException) -> None:
        self._screen.stop()

    def on_compile_begin(self, what: str) -> None:
        self._time.compile(begins=True)
        self._screen.show(self._line)

    def on_compile_end(self, what: str) -> None:
        self._time.compile(begins=False)
        self._screen.show(self._line)

    def _tell_of_first_step(self) -> None:
        """Print the time of the first step, once `History` knows it."""
        if self._told_of_first_step:
            return
        timings = self.model.history.timings if self.model.history is not None else {}
        if "first_step_seconds" in timings:
            self._told_of_first_step = True
            self._screen.note(
                f"first step after {timings['first_step_seconds']:.1f} s, "
                f"{timings['first_step_compile_seconds']:.1f} s of it compiling"
            )

    # --- drawing ------------------------------------------------------------------------------------------------------

    def _begin(self, title: str, epochs_after: int = 0) -> None:
        if not self._training:
            self._time = TimeLeft()
        self._time.begin_epoch(self.params["steps"])
        self._line = Line(title, self.params["steps"], self._time, epochs_after)
        self._start = time.perf_counter()
        self._drawn = 0.0
        self._images = self._done = 0
        self._waiting: collections.deque[tuple[int, int, LazyLogs]] = collections.deque()
        self._screen.show(self._line)

    def _advance(self, batch: int, logs: Logs | None) -> None:
        if isinstance(logs, LazyLogs):
            self._images += logs.examples
        self._done = batch + 1
        if not self._screen.live:
            return
        if isinstance(logs, LazyLogs):
            self._waiting.append((batch + 1, self._images, logs))
        now = time.perf_counter()
        if now - self._drawn < _REDRAW_SECONDS and batch + 1 != self._line.steps:
            if len(self._waiting) > 64:
                self._waiting.popleft()
            return
        self._drawn = now
        done, images = batch + 1, self._images
        newest = None
        while self._waiting and self._waiting[0][2].ready():
            done, images, newest = self._waiting.popleft()
        if newest is not None:
            self._line.values = numbers(dict(newest))
        elif logs is not None:
            return  # the device has finished no step since the last redraw
        self._line.done, self._line.images = done, images
        self._time.step(done)
        self._screen.show(self._line)

    def _status(self, text: str) -> None:
        self._line.status = text
        self._screen.show(self._line)

    def _finish(self, logs: Logs | None) -> None:
        line = self._line
        line.done, line.images, line.values = self._done, self._images, numbers(dict(logs or {}))
        self._screen.finish(line, time.perf_counter() - self._start)
        self._screen.stop()
