"""A callback that saves the model during training."""

import logging
import pathlib
import re
import string
import zlib
from typing import Any

from resfit._utils.checks import is_int, positive_int
from resfit._utils.paths import expand_user
from resfit.callbacks import first_process
from resfit.callbacks.base import Callback
from resfit.callbacks.logs import Logs
from resfit.callbacks.monitor import Monitor, measured_weights
from resfit.errors import CallbackError

_log = logging.getLogger("resfit")


class ModelCheckpoint(Callback):
    """A callback that saves the model at the end of epochs, or every `save_freq` steps.

    Each file is a model file as `Model.save` writes it: variables, spec and preprocessing. `resfit.load` reads it. With
    several processes, the first one writes.

    The file holds the trained weights. If a validation value selects or names the file (save_best_only, or
    `{val_loss}` in the template) and validation uses averaged weights (`SwapEMAWeights`), the file holds the averages,
    which are the weights that validation measured.

    Args:
      filepath: a path that ends in ".safetensors". The path can hold `{epoch}` (counted from one), `{batch}` (counted
        from one; only if save_freq is a number) and names from the logs, as in
        "runs/{epoch:02d}-{val_loss:.3f}.safetensors". Parent folders are created.
      monitor: the name of the value that save_best_only compares.
      verbose: 1 logs the path of every file written.
      save_best_only: write a file only when the monitored value improves.
      save_weights_only: no effect, as a file always holds the weights with what is needed to use them; `resfit.load`
        reads it as a model, and `model.load_weights` into a model.
      mode: "min", "max", or "auto" to infer the direction from the name.
      save_freq: "epoch", or a number of steps. The count of steps continues from one epoch to the next.
      initial_value_threshold: with save_best_only, the value that the first value must beat.
      keep: the number of files to keep: the newest ones, or with save_best_only the best ones (a value then only has to
        beat the worst of those). None keeps all. A file that was changed after it was written is not deleted. Not in
        Keras.

    The arguments up to `save_freq` are also attributes with their names, as in Keras.

    Attributes:
      best: with save_best_only the best value so far, at first `initial_value_threshold`; else None.

    Raises:
      CallbackError: if `filepath` has another ending, if the template holds more than plain names, for an unknown
        save_freq or an unusable keep, and if the logs lack a name of the template or hold text under that name.

    Example:
      >>> callback = ModelCheckpoint("best.safetensors", monitor="val_accuracy", save_best_only=True)
    """

    def __init__(
        self,
        filepath: str | pathlib.Path,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        initial_value_threshold: float | None = None,
        keep: int | None = None,
    ) -> None:
        if save_weights_only not in (True, False):  # a mode, from before this argument existed
            raise CallbackError(f"Expected save_weights_only to be True or False, got {save_weights_only!r}.")
        self.filepath, self.monitor, self.verbose, self.mode, self.save_freq = (
            filepath,
            monitor,
            verbose,
            mode,
            save_freq,
        )
        self.save_best_only, self.save_weights_only = save_best_only, save_weights_only
        self._template = _expanded(str(filepath))
        self._folder = pathlib.Path.cwd()  # relative paths stay in this folder if the process changes to another one
        names = _names(self._template)
        if save_freq != "epoch" and not is_int(save_freq, 1):
            raise CallbackError(f"Expected save_freq to be 'epoch' or a positive number of steps, got {save_freq!r}.")
        self._every = None if save_freq == "epoch" else int(save_freq)
        self._keep = _checked_keep(keep, self._template, names)
        self._monitor = Monitor(monitor, mode) if save_best_only else None
        if self._monitor is not None:
            self._monitor.best = initial_value_threshold
        self._decisive = [*names, monitor] if save_best_only else names
        self._threshold = initial_value_threshold
        self._kept: list[tuple[float | None, str]] = []  # (monitored value, path), the oldest first
        self._checksums: dict[str, int] = {}  # path -> checksum of each file that this callback wrote and still keeps
        self._steps = 0
        self._epoch = 0

    @property
    def best(self) -> float | None:
        """The best value so far."""
        return None if self._monitor is None else self._monitor.best

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
        if self.verbose and first_process.is_first():
            _log.warning("ModelCheckpoint: wrote %s.", path)

    def _among_the_best(self, value: float) -> bool:
        """Return True if `keep` has room for a value that is not the best."""
        if self._monitor is None or self._keep is None or not self._monitor.beats(value, self._threshold):
            return False
        values = [kept for kept, _ in self._kept if kept is not None]
        return len(values) < self._keep or any(self._monitor.beats(value, kept) for kept in values)

    def _forget(self, value: float | None, path: str) -> None:
        """Record a file that was just written, and delete the files beyond `keep`."""
        if self._keep is None:
            return
        self._kept = [entry for entry in self._kept if entry[1] != path] + [(value, path)]
        while len(self._kept) > self._keep:
            worst = 0  # the oldest one, unless the values say otherwise
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
        """Delete a file that this callback wrote, unless it was changed since. The next save retries a failure."""
        try:
            if _checksum(self._folder / path) == self._checksums[path]:
                (self._folder / path).unlink()
            else:
                _log.warning("ModelCheckpoint: %s was changed after it was written and is not deleted.", path)
        except FileNotFoundError:
            _log.debug("ModelCheckpoint: %s was deleted already.", path)
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
                        f"The file name {self._template!r} uses {name!r}, which the logs do not have. Expected one of "
                        f"{sorted([*values, *logs])}. For a brace that is part of the name, write {{{{ or }}}}."
                    )
                values[name] = logs[name]
                if isinstance(values[name], str):  # text could lead to another folder: "../elsewhere"
                    raise CallbackError(
                        f"The file name {self._template!r} uses {name!r}, which is {values[name]!r}. Expected a number."
                    )
        return self._template.format_map(values)

    def _is_mine(self, path: str) -> bool:
        """Return True if the template can give this path: paths come from a checkpoint, and these files get deleted."""
        parts = string.Formatter().parse(self._template)
        pattern = "".join(re.escape(text) + (r"[^/\\]*\w[^/\\]*" if name else "") for text, name, _, _ in parts)
        return re.fullmatch(pattern, path) is not None

    def state_dict(self) -> dict[str, Any]:
        kept = [list(entry) for entry in self._kept]
        return {"best": self.best, "steps": self._steps, "kept": kept, "checksums": dict(self._checksums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._monitor is not None:
            self._monitor.best = state["best"]
        self._steps = state["steps"]
        self._kept = [(value, path) for value, path in state["kept"] if self._is_mine(path)]
        checksums = state.get("checksums")
        if checksums is None:  # a checkpoint of an earlier version: trust the files that exist
            there = [path for _, path in self._kept if (self._folder / path).is_file()]
            checksums = {path: _checksum(self._folder / path) for path in there}
        self._checksums = {path: checksum for path, checksum in checksums.items() if self._is_mine(path)}


def _expanded(template: str) -> str:
    """Return the template with `~` replaced by the home folder; braces of that folder are escaped."""
    home, slash, rest = template.partition("/")
    expanded = expand_user(home)
    return template if expanded == home else expanded.replace("{", "{{").replace("}", "}}") + slash + rest


def _names(template: str) -> list[str]:
    """Return the names in a template, or raise if it is not a template of a model file."""
    if not template.endswith(".safetensors"):
        raise CallbackError(f"Expected filepath to end in '.safetensors', got {template!r}.")
    fields = [(name, form or "") for _, name, form, _ in string.Formatter().parse(template) if name is not None]
    if any(not name.isidentifier() or "{" in form for name, form in fields):
        raise CallbackError(
            f"Expected {{name}} or {{name:format}} in filepath, as in 'runs/{{epoch:02d}}.safetensors', got "
            f"{template!r}."
        )
    return [name for name, _ in fields]


def _checked_keep(keep: int | None, template: str, names: list[str]) -> int | None:
    if keep is None:
        return None
    keep = positive_int("keep", keep, CallbackError, "a positive number of files, or None for all")
    if not names:
        raise CallbackError(
            f"keep={keep} needs files of different names, and {template!r} gives one name. Expected a template such as "
            "'runs/{epoch:03d}.safetensors'."
        )
    return keep


def _checksum(path: pathlib.Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
