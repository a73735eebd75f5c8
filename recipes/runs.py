"""What the recipes that write results share: a run that resumes after a stop, and is not repeated once it is finished.

    from runs import Elapsed, evaluated, find_results, record

The recipes import this module from their own folder, so that it is not part of the package.
"""

import csv
import datetime
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result

import resfit
from resfit.callbacks import Callback, Checkpoint


class Elapsed(Callback):
    """A callback that counts the minutes of a run, of the clock and of the processor, across stops."""

    def __init__(self) -> None:
        self._start, self._before = _now(), np.zeros(2)

    def minutes(self) -> dict[str, float]:
        """Return the minutes so far, for `write_result`."""
        wall, busy = (self._before + _now() - self._start) / 60
        return {"minutes": round(wall, 2), "cpu_minutes": round(busy, 2)}

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far."""
        return {"seconds": (self._before + _now() - self._start).tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the seconds of an earlier process."""
        self._before = np.array(state["seconds"])


def _now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def resumable(folder: Path) -> tuple[Elapsed, list[Callback]]:
    """Return the clock of a run and its callbacks: with `fit(resume=True)` the same command resumes the run."""
    elapsed = Elapsed()
    return elapsed, [elapsed, Checkpoint(folder / "checkpoints", every=datetime.timedelta(minutes=2))]


def evaluated(model: resfit.Model, x: np.ndarray, y: np.ndarray, weights: list[str]) -> dict[str, float]:
    """Return the accuracy by evaluation: each kind of weights, on the images and with the mean over mirror images.

    Args:
      model: trained.
      x: images (n, height, width, channels).
      y: classes (n,).
      weights: "raw", "ema", or both.
    """
    found = {}
    for kind in weights:
        logits, mirrored = (
            model.predict(images, batch_size=500, verbose=0, weights=kind) for images in (x, x[:, :, ::-1])
        )
        for name, outputs in {"": logits, ", flip": logits + mirrored}.items():
            found[f"{'last epoch' if kind == 'raw' else kind}{name}"] = float(np.mean(outputs.argmax(axis=1) == y))
    return found


def find_results(folder: Path, script: str, **values: object) -> list[dict[str, str]]:
    """Return the lines of earlier runs in the CSV file of a script that have these values.

    Args:
      folder: of the CSV files.
      script: the path of the script, `__file__`.
      **values: column -> value.
    """
    path = folder / f"{Path(script).stem}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if all(row[name] == str(value) for name, value in values.items())]


def record(folder: Path, script: str, model: resfit.Model, out: Path, accuracies: dict[str, float], **run: Any) -> None:
    """Write one line for each evaluation, the curve of the training, and the model; then delete the checkpoints.

    Args:
      folder: of the CSV files.
      script: the path of the script, `__file__`.
      model: trained.
      out: the folder of the run.
      accuracies: evaluation -> share, the main one last.
      **run: the other arguments of `write_result`.
    """
    history = model.history.history
    curve = folder / "curves" / f"{Path(script).stem}-{run['recipe'].replace(' ', '_')}-{run['seed']}.csv"
    curve.parent.mkdir(parents=True, exist_ok=True)
    names = [name for name in ("loss", "accuracy", "val_loss", "val_accuracy") if name in history]
    with curve.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["epoch", *names])
        values = zip(*(history[name] for name in names), strict=True)
        writer.writerows([epoch, *(f"{value:.5g}" for value in row)] for epoch, row in enumerate(values, 1))
    model.save(out / "model.safetensors")
    for evaluation, accuracy in accuracies.items():
        write_result(folder, script, evaluation=evaluation, accuracy=accuracy, **run)
    shutil.rmtree(out / "checkpoints")


def report(rows: list[dict[str, str]]) -> None:
    """Print the mean over the seeds for each evaluation of a recipe."""
    for name in dict.fromkeys(row["evaluation"] for row in rows):
        found = [float(row["accuracy"]) for row in rows if row["evaluation"] == name]
        spread = f" ± {100 * np.std(found, ddof=1):.2f}" if len(found) > 1 else ""
        print(f"{100 * np.mean(found):9.2f}{spread} %  {name}, {len(found)} seed{'s' * (len(found) > 1)}")
