"""Saves the model while it trains."""

import logging
import pathlib
import string
from typing import Any

from resfit.callbacks.monitor import Monitor
from resfit.engine.hooks import Callback, Logs
from resfit.errors import CallbackError

_log = logging.getLogger("resfit")


class ModelCheckpoint(Callback):
    """Saves the model (variables, the net's spec and the preprocessing) at the end of epochs, or every some steps.

    What it writes is what `Model.save` writes; `resfit.load` reads it.

    Args:
      filepath: a path ending in ".safetensors"; may hold `{epoch}` (counted from one), `{batch}` (likewise, if
        save_freq is a number) and names from the logs, as in "runs/{epoch:02d}-{val_loss:.3f}.safetensors". Parent
        folders are made.
      monitor: the value that save_best_only watches.
      verbose: 1 logs what is written.
      save_best_only: write only when the monitored value improves.
      mode: "min", "max", or "auto" to tell by the name.
      save_freq: "epoch", or a number of steps, counted on from one epoch to the next.
      initial_value_threshold: with save_best_only, what the first value must beat.

    Raises:
      CallbackError: for a wrong ending, an unknown save_freq, or a name in the template that the logs do not have.

    Example:
      >>> callback = ModelCheckpoint("best.safetensors", monitor="val_accuracy", save_best_only=True)
    """

    def __init__(
        self,
        filepath: str | pathlib.Path,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        initial_value_threshold: float | None = None,
    ) -> None:
        self._template = str(filepath)
        if not self._template.endswith(".safetensors"):
            raise CallbackError(f"Expected filepath to end in '.safetensors', got {self._template!r}.")
        if save_freq != "epoch" and (isinstance(save_freq, bool) or not isinstance(save_freq, int) or save_freq < 1):
            raise CallbackError(f"Expected save_freq to be 'epoch' or a positive number of steps, got {save_freq!r}.")
        self._monitor = Monitor(monitor, mode) if save_best_only else None
        if self._monitor is not None:
            self._monitor.best = initial_value_threshold
        self._verbose = verbose
        self._every = None if save_freq == "epoch" else int(save_freq)
        self._steps = 0
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        if self._every is None:
            return
        self._steps += 1
        if self._steps % self._every == 0:
            self._save(logs or {}, batch)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self._every is None:
            self._save(logs or {}, None)

    def _save(self, logs: Logs, batch: int | None) -> None:
        if self._monitor is not None:
            value = self._monitor.value(logs, "ModelCheckpoint")
            if value is not None and not self._monitor.improves(value):
                return
        path = pathlib.Path(self._path(logs, batch))
        path.parent.mkdir(parents=True, exist_ok=True)
        self.model.save(path)
        if self._verbose:
            _log.warning("ModelCheckpoint: wrote %s.", path)

    def _path(self, logs: Logs, batch: int | None) -> str:
        values: dict[str, object] = {"epoch": self._epoch + 1}
        if batch is not None:
            values["batch"] = batch + 1
        for _, name, _, _ in string.Formatter().parse(self._template):
            if name is not None and name not in values:
                if name not in logs:
                    raise CallbackError(
                        f"The file name {self._template!r} asks for {name!r}; there are {sorted([*values, *logs])}."
                    )
                values[name] = logs[name]
        return self._template.format_map(values)

    def state_dict(self) -> dict[str, Any]:
        best = None if self._monitor is None else self._monitor.best
        return {"best": best, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._monitor is not None:
            self._monitor.best = state["best"]
        self._steps = state["steps"]
