"""Runs of the recipes that write results: a stopped run resumes, and a finished run is not repeated.

    from runs import evaluated, find_results, folder_of, record, resumable

The recipes import this module from their own folder, so that it is not part of the package.
"""

import csv
import datetime
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import append, results_file, write_results

import resfit
from resfit import recipes
from resfit.callbacks import Callback, Checkpoint

RUN = ("recipe", "network", "data", "seed", "epochs")  # what tells a run from the others of its script
CURVES = ("loss", "accuracy", "val_loss", "val_accuracy")


class Elapsed(Callback):
    """A callback that counts the minutes of a run, of the clock and of the processor, across stops."""

    def __init__(self) -> None:
        self._start, self._before = _now(), np.zeros(2)

    def minutes(self) -> dict[str, float]:
        """Return the minutes so far, for `write_results`."""
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


def label(recipe: recipes.TrainingRecipe, precision: str = "auto") -> str:
    """Return the name of a recipe for the results, with the settings of the command that change the accuracy."""
    usual = recipes.get(recipe.name).replace(epochs=recipe.epochs)
    values = {name: getattr(recipe, name) for name in ("batch_size", "train_size", "test_size", "test_crop")}
    changed = [f"{name.replace('_', ' ')} {v:.4g}" for name, v in values.items() if v != getattr(usual, name)]
    return ", ".join([recipe.name, *changed, *([] if precision == "auto" else [precision])])


def folder_of(out: Path, called: str, network: str, epochs: int, seed: int) -> Path:
    """Return the folder of a run: other settings are another run.

    Args:
      out: of the runs of a script.
      called: the result of `label`.
      network: its name.
      epochs: of the run.
      seed: of the run.
    """
    return out / f"{called}-{network}-{epochs}-{seed}".replace(", ", "-").replace(" ", "_")


def resumable(folder: Path) -> tuple[Elapsed, list[Callback]]:
    """Return the clock of a run and its callbacks: with `fit(resume=True)` the same command resumes the run."""
    elapsed = Elapsed()
    return elapsed, [elapsed, Checkpoint(folder / "checkpoints", every=datetime.timedelta(minutes=2))]


def evaluated(model: resfit.Model, x: np.ndarray, y: np.ndarray, evaluations: list[str]) -> dict[str, float]:
    """Return the accuracy by evaluation.

    Args:
      model: trained.
      x: images (n, height, width, channels).
      y: classes (n,).
      evaluations: "last epoch" or "ema", the weights; with ", flip", the mean over each image and its mirror image.
    """
    found = {}
    for name in evaluations:
        kind, _, tta = name.partition(", ")
        weights = "raw" if kind == "last epoch" else kind
        labels = model.predict(x, batch_size=500, verbose=0, outputs="labels", weights=weights, tta=tta or None)
        found[name] = float(np.mean(labels == y))
    return found


def find_results(folder: Path, script: str, **values: object) -> list[dict[str, str]]:
    """Return the lines of earlier runs in the CSV file of a script that have these values.

    Args:
      folder: of the CSV files.
      script: the path of the script, `__file__`.
      **values: column -> value.

    Raises:
      ValueError: if the file has other columns.
    """
    path = results_file(folder, script)
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if all(row[name] == str(value) for name, value in values.items())]


def record(folder: Path, script: str, model: resfit.Model, out: Path, accuracies: dict[str, float], **run: Any) -> None:
    """Write one line for each evaluation, the curve of the training, and the model; then delete any checkpoints.

    Args:
      folder: of the CSV files.
      script: the path of the script, `__file__`.
      model: trained.
      out: the folder of the run.
      accuracies: evaluation -> share, the main one last.
      **run: the other arguments of `write_results`.
    """
    model.save(out / "model.safetensors")
    _write_curve(folder / "curves" / f"{Path(script).stem}.csv", model, {name: run[name] for name in RUN})
    if not find_results(folder, script, **{name: run[name] for name in RUN}):  # another process was not faster
        write_results(folder, script, accuracies, **run)
    if (out / "checkpoints").exists():
        shutil.rmtree(out / "checkpoints")


def _write_curve(path: Path, model: resfit.Model, run: dict[str, Any]) -> None:
    """Append a line for each epoch, in place of lines of the same run: it may have been stopped after writing them."""
    history, columns = model.history.history, (*RUN, "epoch", *CURVES)
    if path.exists():
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        others = [row for row in rows if any(row[name] != str(run[name]) for name in RUN)]
        if len(others) < len(rows):
            kept = path.with_suffix(f".{os.getpid()}")
            append(kept, columns, others)
            kept.replace(path)
    append(
        path,
        columns,
        [
            {**run, "epoch": epoch + 1} | {name: f"{history[name][epoch]:.5g}" for name in CURVES if name in history}
            for epoch in range(run["epochs"])
        ],
    )


def differences(rows: list[dict[str, str]]) -> dict[str, np.ndarray]:
    """Return technique -> the change of the accuracy by it alone, in points, for each seed that has both runs.

    The lines of the recipe "NAME + technique" are compared with those of "NAME" after the last epoch, and within the
    recipe NAME, other evaluations with the last epoch.

    Args:
      rows: the lines of runs with one dataset and one number of epochs, and one recipe without " + ".
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        found.setdefault((row["recipe"], row["evaluation"]), {})[row["seed"]] = 100 * float(row["accuracy"])
    (base,) = {recipe for recipe, _ in found if " + " not in recipe}
    compared = {
        **{recipe.partition(" + ")[2]: (recipe, "last epoch") for recipe, _ in found if recipe != base},
        **{f"evaluation {name.removeprefix('last epoch, ')}": (base, name) for recipe, name in found if recipe == base},
    }
    plain = found[base, "last epoch"]
    changes = {}
    for name, key in compared.items():
        seeds = [seed for seed in plain if seed in found.get(key, {})]
        if key != (base, "last epoch") and seeds:
            changes[name] = np.array([found[key][seed] - plain[seed] for seed in seeds])
    return changes


def mean_and_error(values: np.ndarray) -> str:
    """Return the mean of differences and its standard error, which needs two of them, as text."""
    error = f" ± {np.std(values, ddof=1) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):+.2f}{error}"


def report(rows: list[dict[str, str]]) -> None:
    """Print the mean over the seeds for each evaluation of a recipe."""
    for name in dict.fromkeys(row["evaluation"] for row in rows):
        found = [float(row["accuracy"]) for row in rows if row["evaluation"] == name]
        spread = f" ± {100 * np.std(found, ddof=1):.2f}" if len(found) > 1 else ""
        print(f"{100 * np.mean(found):9.2f}{spread} %  {name}, {len(found)} seed{'s' * (len(found) > 1)}")
