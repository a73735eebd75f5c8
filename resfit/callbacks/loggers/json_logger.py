"""A callback that writes epochs, and optionally batches, as lines of JSON."""

import datetime
import json
import logging
import math
import os
from typing import Any

import numpy as np

from resfit._utils import atomic_write
from resfit._utils.paths import file_path
from resfit.callbacks import first_process
from resfit.callbacks.loggers.metric_logger import MetricLogger, Moment
from resfit.callbacks.logs import Logs

_log = logging.getLogger("resfit")


class JSONLogger(MetricLogger):
    """A callback that writes one JSON object per line: {"epoch": 0, "step": 100, "loss": 1.5, ...}.

    The line of a batch also has "batch". Epoch and batch are counted from zero; step is the number of training steps
    done. The values of a batch are the running means since the epoch began. Every line is strict JSON, which has no
    NaN: values that are not finite become "NaN", "Infinity" or "-Infinity", which Python's float() and JavaScript's
    Number() read. A resumed run continues after the last line of its checkpoint. With several processes, the first one
    writes.

    Args:
      filename: the path of the file. Its folder is created.
      every: "epoch", or a number of steps or a datetime.timedelta to write batches too.
      append: append to an existing file. By default every `fit` overwrites the file.

    Example:
      >>> callback = JSONLogger("runs/a/log.jsonl", every=100)
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        every: str | int | datetime.timedelta = "epoch",
        append: bool = False,
    ) -> None:
        super().__init__(every)
        self._path = file_path(filename)
        self._append = append
        self._keep: int | None = None if append else 0  # the number of lines of the file to keep; None for all
        self._lines: int | None = None  # of the file; None until the file was read

    def on_train_begin(self, logs: Logs | None = None) -> None:
        super().on_train_begin(logs)
        self._keep = None if self._append else 0
        self._lines = None

    def write(self, moment: Moment, values: dict[str, Any]) -> None:
        where = {name: value for name, value in moment._asdict().items() if value is not None}
        line = json.dumps(where | {name: _strict(value) for name, value in values.items()}, allow_nan=False)
        self._lines = self._begun() + 1
        with self._path.open("a") as file:
            file.write(f"{line}\n")

    def _begun(self) -> int:
        """Return the number of lines in the file. The first call truncates the file to what this run keeps."""
        if self._lines is not None:
            return self._lines
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_text().splitlines() if self._keep != 0 and self._path.exists() else []
        if self._keep is not None:
            if len(lines) < self._keep:
                _log.warning(
                    "JSONLogger: %s has %d lines, but the resumed run wrote %d.",
                    self._path,
                    len(lines),
                    self._keep,
                )
            lines = lines[: self._keep]
        atomic_write.write(self._path, "".join(f"{line}\n" for line in lines).encode())
        return len(lines)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if first_process.is_first():
            self._lines = self._begun()
        return {**state, "lines": self._lines}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._keep, self._lines = state["lines"], None


def _strict(value: Any) -> Any:
    """Return a value that strict JSON can hold."""
    if isinstance(value, str):
        return value
    plain = np.asarray(value).tolist()
    if isinstance(plain, list):
        return [_strict(entry) for entry in plain]
    if isinstance(plain, float) and not math.isfinite(plain):
        return "NaN" if math.isnan(plain) else "Infinity" if plain > 0 else "-Infinity"
    return plain
