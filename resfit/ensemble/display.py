"""The lines that the fit of an ensemble shows."""

import time

from resfit.callbacks import ProgressBar
from resfit.callbacks.logs import Logs
from resfit.ensemble.history import texts


class Rows(ProgressBar):
    """A callback that shows one line per epoch, with mean and standard error of the members."""

    def __init__(self) -> None:
        super().__init__(verbose=2)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        row = {"epoch": self._epoch} | texts(dict(logs or {}))
        self._screen.row(self._line, row | {"time": f"{time.perf_counter() - self._start:.1f} s"})
