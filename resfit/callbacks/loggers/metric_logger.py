"""The base class of callbacks that log numbers; the device never waits for one of them."""

import collections
import contextlib
import datetime
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from resfit.callbacks import first_process, learning_rate_checks
from resfit.callbacks.base import Callback
from resfit.callbacks.every import Every
from resfit.callbacks.logs import LazyLogs, Logs
from resfit.callbacks.throughput import Throughput


class Moment(NamedTuple):
    """The time of a measurement.

    Attributes:
      epoch: the epoch, counted from zero.
      batch: the batch of the epoch, counted from zero; None at the end of the epoch.
      step: the number of training steps done. The count continues in a second `fit` with the same object.
    """

    epoch: int
    batch: int | None
    step: int


class MetricLogger(Callback):
    """Base class of callbacks that log numbers of every epoch, and optionally of batches. Override `write`.

    The numbers of a batch are written once the device has finished the step, a few steps later; the device never waits.
    The numbers of an epoch are its logs and the learning rate. A validation within an epoch is written at the batch
    before it, under names that begin with `val_`. With several processes, only the first one writes.

    Args:
      every: "epoch", or a number of steps or a datetime.timedelta to write batches too.
    """

    def __init__(self, every: str | int | datetime.timedelta = "epoch") -> None:
        self._every = Every(every, type(self).__name__)
        self._speed = Throughput()
        self._waiting: collections.deque[tuple[Moment, LazyLogs]] = collections.deque()
        self._validated: tuple[Moment, dict[str, Any]] | None = None  # not written yet
        self._training = False
        self._epoch = self._batch = self._step = 0

    def write(self, moment: Moment, values: dict[str, Any]) -> None:
        """Write the values of a moment: floats or NumPy arrays by name."""
        raise NotImplementedError(f"{type(self).__name__} must override `write`.")

    def close(self) -> None:
        """Release resources. Runs at the end of training, after the last `write`."""

    @property
    def figures(self) -> dict[str, float]:
        """Wall-clock figures of the finished epoch, which the logs do not hold."""
        return {"images_per_second": self._speed.images_per_second[-1], "data_wait": self.model.control.data_wait}

    @property
    def steps_per_second(self) -> float:
        """Steps per second of the finished epoch."""
        return self._speed.steps_per_second[-1]

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._waiting.clear()
        self._validated = None
        self._training = True
        self._speed.set_model(self.model)
        self._speed.on_train_begin()

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._epoch = epoch
        self._speed.on_epoch_begin(epoch)

    def on_compile_begin(self, what: str) -> None:
        self._speed.on_compile_begin(what)

    def on_compile_end(self, what: str) -> None:
        self._speed.on_compile_end(what)

    def on_test_begin(self, logs: Logs | None = None) -> None:
        if self._training:
            self._speed.on_test_begin()

    def on_test_end(self, logs: Logs | None = None) -> None:
        if self._training:
            self._speed.on_test_end()
            values = {f"val_{name}": value for name, value in (logs or {}).items()}
            self._validated = Moment(self._epoch, self._batch, self._step), values

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._speed.on_train_batch_end(batch, logs)
        if self._validated is not None and first_process.is_first():
            # The epoch continues after this validation, so the logs of the epoch will hold a later one.
            self._write_all()
            self.write(*self._validated)
        self._validated = None
        self._batch = batch
        self._step += 1
        if self._every.due(self._step) and first_process.is_first():
            self._waiting.append((Moment(self._epoch, batch, self._step), cast(LazyLogs, logs)))
        while self._waiting and self._waiting[0][1].ready():
            self._write_oldest()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self._speed.on_epoch_end(epoch)
        self._validated = None
        if not first_process.is_first():
            return
        self._write_all()
        values = dict(logs or {})
        learning_rate = learning_rate_checks.current(self.model)
        if learning_rate is not None:
            values.setdefault("learning_rate", learning_rate)
        self.write(Moment(epoch, None, self._step), values)

    def on_exception(self, exception: BaseException) -> None:
        # The outputs of a step that failed on the device cannot be read.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._write_all()

    def on_train_end(self, logs: Logs | None = None) -> None:
        self._waiting.clear()
        self._training = False
        if first_process.is_first():
            self.close()

    def _write_all(self) -> None:
        while self._waiting:
            self._write_oldest()

    def _write_oldest(self) -> None:
        moment, logs = self._waiting.popleft()
        self.write(moment, dict(logs))

    def state_dict(self) -> dict[str, Any]:
        self._write_all()  # the checkpoint counts them as written
        validated = None if self._validated is None else [list(self._validated[0]), self._validated[1]]
        return {"step": self._step, "batch": self._batch, "validated": validated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step, self._batch = state["step"], state.get("batch", 0)  # earlier versions did not save it
        validated = state["validated"]
        self._validated = None if validated is None else (Moment(*validated[0]), validated[1])


def scalars(values: dict[str, Any]) -> dict[str, float]:
    """Return the numbers among the values. A vector (one value per class) gives `name_0`, `name_1` and so on.

    Example:
      >>> scalars({"loss": 0.5, "recall": np.array([0.25, 1.0]), "matrix": np.eye(2)})
      {'loss': 0.5, 'recall_0': 0.25, 'recall_1': 1.0}
    """
    found: dict[str, float] = {}
    for name, value in values.items():
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            continue
        if array.ndim == 0:
            found[name] = float(array)
        elif array.ndim == 1:
            found |= {f"{name}_{i}": float(entry) for i, entry in enumerate(array)}
    return found
