"""Shared parts of the recipes: the options --dry-run and --results, and one line of CSV for each run.

    from common import RunTime, add_options, write_result

The recipes import this module from their own folder, so that it is not part of the package.
"""

import argparse
import csv
import datetime
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax

import resfit

COLUMNS = (
    "recipe", "network", "data", "evaluation", "seed", "accuracy", "epochs", "minutes", "cpu_minutes", "machine",
    "commit", "date", "command",
)  # fmt: skip
ROOT = Path(__file__).parents[1]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --dry-run and --results."""
    parser.add_argument(
        "--dry-run", action="store_true", help="print shapes, memory, steps and the estimated time; then stop"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="FOLDER", help="of the line of this run (results)"
    )


def positive(text: str) -> int:
    """Return a positive integer of the command line, as the `type` of an option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive integer")
    return int(text)


class RunTime:
    """The minutes of a run, from the moment that this object is made."""

    def __init__(self) -> None:
        self._start, self._busy = time.perf_counter(), time.process_time()

    def minutes(self) -> dict[str, float]:
        """Return the minutes so far, of the clock and of the processor, for `write_result`."""
        wall, busy = time.perf_counter() - self._start, time.process_time() - self._busy
        return {"minutes": round(wall / 60, 2), "cpu_minutes": round(busy / 60, 2)}


def write_result(
    folder: Path,
    script: str,
    *,
    recipe: str,
    network: str,
    data: str,
    seed: int,
    accuracy: float,
    epochs: int,
    minutes: float,
    cpu_minutes: float | None = None,
    evaluation: str = "last epoch",
) -> Path:
    """Append a line to the CSV file of a script, and return the path of the file. Adds machine, commit and command.

    Args:
      folder: of the file; it is made if it does not exist.
      script: the path of the script, `__file__`, whose name the file has.
      recipe: the name of the recipe, or of the settings.
      network: its name.
      data: the dataset, and the part of it that the accuracy is of, such as "cifar10 test".
      seed: of the run.
      accuracy: a share, from 0 to 1.
      epochs: of the run.
      minutes: see `RunTime`.
      cpu_minutes: see `RunTime`; None if they are unknown, as after a resume.
      evaluation: of the weights, such as "last epoch", "ema" or "last epoch, flip".

    Raises:
      ValueError: if the accuracy is not a share, or the file has other columns.
    """
    if not 0 <= accuracy <= 1:
        raise ValueError(f"Got accuracy={accuracy}. Expected a share from 0 to 1.")
    row = {
        "recipe": recipe, "network": network, "data": data, "evaluation": evaluation, "seed": seed,
        "accuracy": f"{accuracy:.4f}", "epochs": epochs, "minutes": minutes, "cpu_minutes": cpu_minutes,
        "machine": machine(), "commit": commit(), "date": f"{datetime.datetime.now():%Y-%m-%d}",
        "command": command(script),
    }  # fmt: skip
    path = folder / f"{Path(script).stem}.csv"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{','.join(COLUMNS)}\n")
    first = path.read_text().partition("\n")[0]
    if first != ",".join(COLUMNS):
        raise ValueError(f"{path} has the columns {first!r}. Expected {','.join(COLUMNS)!r}. Move the file away.")
    with path.open("a", newline="") as file:
        csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
    return path


def machine() -> str:
    """Return the processor or accelerators, the cores, and the version of JAX."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    named = _processor() if device.platform == "cpu" else f"{jax.device_count()} x {device.device_kind}"
    return f"{named}, {cores} cores, jax {jax.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not on Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """Return the commit of the code, with a + if the code was changed since; the version if there is no repository."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return f"resfit {resfit.__version__}"
    found, changed = (
        subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()
        for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", "resfit", "recipes"])
    )
    return found + ("+" if changed else "")


def command(script: str) -> str:
    """Return the command of this run."""
    return shlex.join(["python", f"recipes/{Path(script).name}", *sys.argv[1:]])
