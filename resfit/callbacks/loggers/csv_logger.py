"""A callback that writes every epoch as a row of a CSV file."""

import csv
import io
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from resfit._utils import atomic_write
from resfit._utils.paths import file_path
from resfit.callbacks import first_process
from resfit.callbacks.base import Callback
from resfit.callbacks.logs import Logs
from resfit.errors import CallbackError

_log = logging.getLogger("resfit")
_MISSING = "NA"


class CSVLogger(Callback):
    """A callback that writes every epoch's logs as a row of a CSV file, as in Keras.

    The first column is `epoch`, counted from zero; the names follow in alphabetical order. A name that first appears in
    a later epoch (validation_freq) gets a column, with NA in the earlier rows. A resumed run continues after the last
    epoch of its checkpoint. With several processes, the first one writes.

    Args:
      filename: the path of the file. Its folder is created.
      separator: one character between the values.
      append: append to an existing file without a second header. By default every `fit` overwrites the file.

    Attributes:
      filename: the absolute path of the file.
      sep: the separator.
      append: the argument.

    Raises:
      CallbackError: if separator is not one character.

    Example:
      >>> callback = CSVLogger("runs/a/log.csv", append=True)
    """

    def __init__(self, filename: str | os.PathLike[str], separator: str = ",", append: bool = False) -> None:
        if not isinstance(separator, str) or len(separator) != 1:
            raise CallbackError(f"Expected separator to be one character, got {separator!r}.")
        self.filename = file_path(filename)
        self.sep = separator
        self.append = append
        self._columns: list[str] | None = None  # of the file; None until the file was read
        self._keep: int | None = None if append else 0  # the number of rows of the file to keep; None for all
        self._rows = 0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._columns = None
        self._keep = None if self.append else 0

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if not first_process.is_first():
            return
        if self._columns is None:
            self._begin()
        row = {"epoch": str(epoch), **{name: _cell(value) for name, value in (logs or {}).items()}}
        columns = ["epoch", *sorted({*(self._columns or ()), *row} - {"epoch"})]
        if columns == self._columns:
            with self.filename.open("a", newline="", encoding="utf-8") as file:
                file.write(self._text(columns, [row]))
        else:
            self._rewrite(columns, [*self._read()[1], row])
        self._rows += 1

    def _begin(self) -> None:
        self.filename.parent.mkdir(parents=True, exist_ok=True)
        columns, rows = ([], []) if self._keep == 0 or not self.filename.exists() else self._read()
        if self._keep is not None:
            if len(rows) < self._keep:
                _log.warning(
                    "CSVLogger: %s has %d rows, but the resumed run wrote %d.", self.filename, len(rows), self._keep
                )
            rows = rows[: self._keep]
        self._rewrite(columns, rows)
        self._rows = len(rows)

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        with self.filename.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, delimiter=self.sep, restval=_MISSING)
            rows = list(reader)
            return list(reader.fieldnames or ()), rows

    def _rewrite(self, columns: list[str], rows: Sequence[dict[str, str]]) -> None:
        header = dict(zip(columns, columns, strict=True))
        text = self._text(columns, [header, *rows]) if columns else ""
        atomic_write.write(self.filename, text.encode())
        self._columns = columns

    def _text(self, columns: list[str], rows: Sequence[dict[str, str]]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(
            text, columns, restval=_MISSING, delimiter=self.sep, lineterminator="\n", extrasaction="raise"
        )
        writer.writerows(rows)
        return text.getvalue()

    def state_dict(self) -> dict[str, Any]:
        if self._columns is None and first_process.is_first():
            self._begin()  # reads the number of rows from before this run
        return {"rows": self._rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._columns, self._keep = None, state["rows"]


def _cell(value: Any) -> str:
    """Return a number as Python prints it, and an array as a JSON list."""
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    return str(float(array)) if array.ndim == 0 else json.dumps(array.tolist())
