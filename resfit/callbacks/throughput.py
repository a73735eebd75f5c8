"""How many images a second a run trains on."""

from resfit.callbacks.base import Callback
from resfit.callbacks.logs import LazyLogs, Logs
from resfit.callbacks.stopwatch import Stopwatch


class Throughput(Callback):
    """Measures the speed of training, epoch by epoch: without compiling, and without validation.

    `fit`'s own reading of the epoch's metrics has waited for the last step before the clock is read, so the time is the
    device's. The figures also go to `model.history.timings["images_per_second"]`. Put it first in the list: what other
    callbacks do in on_epoch_end before it counts as training where there is no validation.

    Attributes:
      images_per_second: one figure per epoch of this `fit`.
      steps_per_second: likewise.

    Example:
      >>> speed = Throughput()
    """

    def __init__(self) -> None:
        self.images_per_second: list[float] = []
        self.steps_per_second: list[float] = []
        self._watch = Stopwatch()
        self._images = self._steps = 0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.images_per_second = []
        self.steps_per_second = []

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._images = self._steps = 0
        self._watch.start()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._steps += 1
        if isinstance(logs, LazyLogs):
            self._images += logs.examples

    def on_compile_begin(self, what: str) -> None:
        self._watch.hold()

    def on_compile_end(self, what: str) -> None:
        self._watch.release()

    def on_test_begin(self, logs: Logs | None = None) -> None:
        self._watch.hold()

    def on_test_end(self, logs: Logs | None = None) -> None:
        self._watch.release()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        seconds = self._watch.seconds
        self.images_per_second.append(self._images / seconds)
        self.steps_per_second.append(self._steps / seconds)
        if self.model.history is not None:
            self.model.history.timings["images_per_second"] = list(self.images_per_second)
