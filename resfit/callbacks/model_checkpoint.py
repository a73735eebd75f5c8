"""Saves the model while it trains."""

import logging
import pathlib
import re
import string
import zlib
from typing import Any

from resfit._utils.paths import expand_user
from resfit.callbacks import first_process
from resfit.callbacks.base import Callback
from resfit.callbacks.logs import Logs
from resfit.callbacks.monitor import Monitor, measured_weights
from resfit.errors import CallbackError

_log = logging.getLogger("resfit")


class ModelCheckpoint(Callback):
    """Saves the model (variables, the net's spec and the preprocessing) at the end of epochs, or every some steps.

    What it writes is what `Model.save` writes; `resfit.load` reads it. With several processes, the first writes.

    The file holds the weights as trained. Where a value of the validation chooses or names the file (save_best_only,
    or `{val_loss}` in the template) and the validation uses averaged weights (`SwapEMAWeights`), the file holds the
    averages, which are the weights that were measured.

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
      keep: how many of the files it wrote to keep: the last ones, or with save_best_only the best ones (a value need
        then only beat the worst of them). None keeps all. A file that was changed after it was written is left alone.
        Not in Keras.

    Raises:
      CallbackError: for a wrong ending, an unknown save_freq, a keep that cannot work, more than plain names in the
        template, or a name that the logs do not have, or have as text.

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
        keep: int | None = None,
    ) -> None:
        self._template = _expanded(str(filepath))
        self._folder = pathlib.Path.cwd()  # of relative paths, wherever the process goes later
        if not self._template.endswith(".safetensors"):
            raise CallbackError(f"Expected filepath to end in '.safetensors', got {self._template!r}.")
        fields = [
            (name, form or "") for _, name, form, _ in string.Formatter().parse(self._template) if name is not None
        ]
        if any(not name.isidentifier() or "{" in form for name, form in fields):
            raise CallbackError(
                f"Expected {{name}} or {{name:format}} in filepath, as in 'runs/{{epoch:02d}}.safetensors', got "
                f"{self._template!r}."
            )
        if save_freq != "epoch" and (isinstance(save_freq, bool) or not isinstance(save_freq, int) or save_freq < 1):
            raise CallbackError(f"Expected save_freq to be 'epoch' or a positive number of steps, got {save_freq!r}.")
        self._monitor = Monitor(monitor, mode) if save_best_only else None
        if self._monitor is not None:
            self._monitor.best = initial_value_threshold
        if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
            raise CallbackError(f"Expected keep to be a positive number of files, or None for all, got {keep!r}.")
        if keep is not None and not fields:
            raise CallbackError(
                f"keep={keep} needs files of different names, and {self._template!r} is always the same. Expected a "
                "template such as 'runs/{epoch:03d}.safetensors'."
            )
        self._decisive = [name for name, _ in fields] + ([monitor] if save_best_only else [])
        self._keep = keep
        self._threshold = initial_value_threshold
        self._kept: list[tuple[float | None, str]] = []  # (monitored value, path), the oldest first
        self._checksums: dict[str, int] = {}  # by path: of what this callback wrote and has not deleted
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
        value = None
        if self._keep is not None and first_process.is_first():
            self._kept = [(value, path) for value, path in self._kept if (self._folder / path).exists()]
        if self._monitor is not None:
            value = self._monitor.value(logs, "ModelCheckpoint")
            if value is not None and not (self._monitor.improves(value) or self._among_the_best(value)):
                return
        path = str(pathlib.Path(self._path(logs, batch)))
        if first_process.is_first():
            (self._folder / path).parent.mkdir(parents=True, exist_ok=True)
            self.model.save(self._folder / path, weights=measured_weights(self.model, self._decisive))
        self._forget(value, path)
        if self._verbose and first_process.is_first():
            _log.warning("ModelCheckpoint: wrote %s.", path)

    def _among_the_best(self, value: float) -> bool:
        """Whether a value that is not the best is still one of those to keep."""
        if self._monitor is None or self._keep is None or not self._monitor.beats(value, self._threshold):
            return False
        values = [kept for kept, _ in self._kept if kept is not None]
        return len(values) < self._keep or any(self._monitor.beats(value, kept) for kept in values)

    def _forget(self, value: float | None, path: str) -> None:
        """Take a file into account that was just written, and delete those that there is no room for any more."""
        if self._keep is None:
            return
        self._kept = [entry for entry in self._kept if entry[1] != path] + [(value, path)]
        while len(self._kept) > self._keep:
            worst = 0  # the oldest, where no value says otherwise
            for i, (candidate, _) in enumerate(self._kept):
                reference = self._kept[worst][0]
                if self._monitor is not None and reference is not None and candidate is not None:
                    worst = i if self._monitor.beats(reference, candidate) else worst
            self._kept.pop(worst)
        if first_process.is_first():
            self._checksums[path] = _checksum(self._folder / path)
            for old in sorted(self._checksums.keys() - {name for _, name in self._kept}):
                self._delete(old)

    def _delete(self, path: str) -> None:
        """Delete a file that this callback wrote, unless it was changed since; what fails is tried again."""
        try:
            if _checksum(self._folder / path) == self._checksums[path]:
                (self._folder / path).unlink()
            else:
                _log.warning("ModelCheckpoint: %s is kept: it was changed after it was written.", path)
        except FileNotFoundError:
            _log.debug("ModelCheckpoint: %s is gone already.", path)
        except OSError as error:
            _log.warning("ModelCheckpoint: %s cannot be deleted: %s. The next save tries again.", path, error)
            return
        del self._checksums[path]

    def _path(self, logs: Logs, batch: int | None) -> str:
        values: dict[str, Any] = {"epoch": self._epoch + 1}
        if batch is not None:
            values["batch"] = batch + 1
        for _, name, _, _ in string.Formatter().parse(self._template):
            if name is not None and name not in values:
                if name not in logs:
                    raise CallbackError(
                        f"The file name {self._template!r} asks for {name!r}; there are {sorted([*values, *logs])}."
                    )
                values[name] = logs[name]
                if isinstance(values[name], str):  # "../elsewhere" would do as well
                    raise CallbackError(
                        f"The file name {self._template!r} asks for {name!r}, which is {values[name]!r}. Expected a "
                        "number."
                    )
        return self._template.format_map(values)

    def _is_mine(self, path: str) -> bool:
        """Whether the template could have given this path: a checkpoint of the run says so, and it will be deleted."""
        parts = string.Formatter().parse(self._template)
        pattern = "".join(re.escape(text) + (r"[^/\\]*\w[^/\\]*" if name else "") for text, name, _, _ in parts)
        return re.fullmatch(pattern, path) is not None

    def state_dict(self) -> dict[str, Any]:
        best = None if self._monitor is None else self._monitor.best
        kept = [list(entry) for entry in self._kept]
        return {"best": best, "steps": self._steps, "kept": kept, "checksums": dict(self._checksums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._monitor is not None:
            self._monitor.best = state["best"]
        self._steps = state["steps"]
        self._kept = [(value, path) for value, path in state["kept"] if self._is_mine(path)]
        checksums = state.get("checksums")
        if checksums is None:  # of an earlier version: what is there is taken for what was written
            there = [path for _, path in self._kept if (self._folder / path).is_file()]
            checksums = {path: _checksum(self._folder / path) for path in there}
        self._checksums = {path: checksum for path, checksum in checksums.items() if self._is_mine(path)}


def _expanded(template: str) -> str:
    """A template whose `~` is replaced by a folder in which braces are no fields."""
    home, slash, rest = template.partition("/")
    expanded = expand_user(home)
    return template if expanded == home else expanded.replace("{", "{{").replace("}", "}}") + slash + rest


def _checksum(path: pathlib.Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
