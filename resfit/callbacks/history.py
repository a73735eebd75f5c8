"""The record of a run, epoch by epoch."""

import time
from typing import TYPE_CHECKING, Any

from resfit.callbacks.base import Callback
from resfit.callbacks.logs import LazyLogs, Logs, as_plain

if TYPE_CHECKING:
    import matplotlib.figure


class History(Callback):
    """A callback that records the logs of every epoch. `fit` adds a `History` and returns it.

    Attributes:
      history: name -> its values, one per epoch that has the value, as in Keras: with `validation_freq` only the
        validated epochs. Floats, and lists for metrics of several numbers.
      epoch: the numbers of the epochs.
      epochs: name -> the numbers of the epochs of its values.
      validations: name -> one value per validation, and "step" -> the number of steps trained before each. An epoch can
        have several validations (validation_every).
      timings: wall-clock figures, which are no results: "epoch_seconds", one float per epoch; "data_wait", the share of
        each epoch in which the device waited for data. If this `fit` compiled its step, also "first_step_seconds", the
        time from the beginning of `fit` until the device had finished the first step, and
        "first_step_compile_seconds", the part of it that went into tracing and compiling.
      settings: the settings of the run, as JSON values by name: those of `compile` and `fit` that decide its result,
        "optimizer", "loss" and "augment" as text, and "examples", the number of training examples or None.
      weights_epoch: the number of the epoch whose weights the model has since, if `EarlyStopping` restored them;
        otherwise None.
      params: the parameters of the run.

    Example:
      >>> history = History()
      >>> history.on_train_begin()
      >>> history.on_epoch_end(0, {"loss": 2.3})
      >>> history.history
      {'loss': [2.3]}
    """

    def __init__(self) -> None:
        self.history: dict[str, list[Any]] = {}
        self.epoch: list[int] = []
        self.epochs: dict[str, list[int]] = {}
        self.validations: dict[str, list[Any]] = {}
        self._steps = 0
        self.timings: dict[str, Any] = {"epoch_seconds": [], "data_wait": []}
        self.settings: dict[str, Any] = {}
        self.weights_epoch: int | None = None
        self._start = self._epoch_start = self._compile_start = time.perf_counter()

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.history.clear()
        self.epoch.clear()
        self.epochs.clear()
        self.validations.clear()
        self._steps = 0
        self.weights_epoch = None
        self.timings = {"epoch_seconds": [], "data_wait": []}
        self._start = self._epoch_start = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._epoch_start = time.perf_counter()

    def on_compile_begin(self, what: str) -> None:
        self._compile_start = time.perf_counter()

    def on_compile_end(self, what: str) -> None:
        if what == "train" and self._steps == 0:
            self.timings["first_step_compile_seconds"] = time.perf_counter() - self._compile_start

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._steps += 1
        if self._steps == 1 and "first_step_compile_seconds" in self.timings:
            if isinstance(logs, LazyLogs):
                logs.wait()  # only once, in a fit that compiled, where the time does not matter
            self.timings["first_step_seconds"] = time.perf_counter() - self._start

    def on_test_end(self, logs: Logs | None = None) -> None:
        for name, value in {"step": self._steps, **(logs or {})}.items():
            self.validations.setdefault(name, []).append(as_plain(value))

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(as_plain(value))
            self.epochs.setdefault(name, []).append(epoch)
        self.history = {name: self.history[name] for name in sorted(self.history, key=_order)}
        self.epoch.append(epoch)
        self.timings["epoch_seconds"].append(time.perf_counter() - self._epoch_start)
        self.timings["data_wait"].append(self.model.control.data_wait if hasattr(self, "model") else 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": {name: list(values) for name, values in self.history.items()},
            "epoch": list(self.epoch),
            "epochs": {name: list(epochs) for name, epochs in self.epochs.items()},
            "validations": {name: list(values) for name, values in self.validations.items()},
            "steps": self._steps,
            "weights_epoch": self.weights_epoch,
            "epoch_seconds": list(self.timings["epoch_seconds"]),
            "data_wait": list(self.timings["data_wait"]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = list(state["epoch"])
        # Checkpoints of earlier versions have None for an epoch without the value, and arrays.
        epochs = state.get("epochs") or dict.fromkeys(state["history"], self.epoch)
        pairs = {name: list(zip(epochs[name], values, strict=True)) for name, values in state["history"].items()}
        found = {
            name: [(epoch, as_plain(value)) for epoch, value in of if value is not None] for name, of in pairs.items()
        }
        self.history = {name: [value for _, value in of] for name, of in found.items()}
        self.epochs = {name: [epoch for epoch, _ in of] for name, of in found.items()}
        self.validations = {name: list(values) for name, values in state["validations"].items()}
        self._steps = state["steps"]
        self.weights_epoch = state.get("weights_epoch")  # added later
        self.timings["epoch_seconds"] = list(state["epoch_seconds"])
        self.timings["data_wait"] = list(state["data_wait"])

    def plot(self) -> "matplotlib.figure.Figure":
        """Return a figure with one panel per value: the curves of training and validation. Needs `resfit[plot]`."""
        from resfit import plots

        return plots.curves(self)


def _order(name: str) -> tuple[bool, str, bool]:
    """Return a sort key: loss first, then names in alphabetical order, each before its val_ name."""
    base = name.removeprefix("val_")
    return base != "loss", base, name != base
