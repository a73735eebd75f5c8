"""A callback that measures images per second."""

from resfit.callbacks.base import Callback
from resfit.callbacks.logs import LazyLogs, Logs
from resfit.callbacks.stopwatch import Stopwatch


class Throughput(Callback):
    """A callback that measures the speed of training in every epoch, without compilation and validation.

    `fit` reads the epoch's metrics, and so waits for the last step, before this callback reads the clock: the time is
    the device's. `model.history.timings["images_per_second"]` holds the figures too. Put this callback first in the
    list: without validation, the on_epoch_end of earlier callbacks counts as training.

    Attributes:
      images_per_second: one figure per epoch of this `fit`.
      steps_per_second: one figure per epoch of this `fit`.

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
