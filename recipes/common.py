"""Shared parts of the recipes: the options --dry-run and --results, and one line of CSV for each run.

    from common import RunTime, add_options, start, write_results

The recipes import this module from their own folder, so that it is not part of the package.
"""

import argparse
import csv
import datetime
import io
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax

import resfit
from resfit.errors import ResfitError

COLUMNS = (
    "recipe", "network", "data", "evaluation", "seed", "accuracy", "epochs", "minutes", "cpu_minutes", "machine",
    "commit", "date", "command",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]


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
        """Return the minutes so far, of the clock and of the processor, for `write_results`."""
        wall, busy = time.perf_counter() - self._start, time.process_time() - self._busy
        return {"minutes": round(wall / 60, 2), "cpu_minutes": round(busy / 60, 2)}


def write_results(
    folder: Path,
    script: str,
    accuracies: Mapping[str, float],
    *,
    recipe: str,
    network: str,
    data: str,
    seed: int,
    epochs: int,
    minutes: float,
    cpu_minutes: float | None = None,
) -> Path:
    """Append a line for each evaluation of a run to the CSV file of a script, and return the path of the file.

    The lines are written at once, so that a stop leaves all of them or none. Adds machine, commit and command.

    Args:
      folder: of the file; it is made if it does not exist.
      script: the path of the script, `__file__`, whose name the file has.
      accuracies: evaluation -> share, from 0 to 1. An evaluation is that of the weights, such as "last epoch", "ema" or
        "last epoch, flip".
      recipe: the name of the recipe, or of the settings.
      network: its name.
      data: the dataset, and the part of it that the accuracy is of, such as "cifar10 test".
      seed: of the run.
      epochs: of the run.
      minutes: see `RunTime`.
      cpu_minutes: see `RunTime`; None if they are unknown, as after a resume.

    Raises:
      ValueError: if an accuracy is not a share, or the file has other columns.
    """
    if wrong := [accuracy for accuracy in accuracies.values() if not 0 <= accuracy <= 1]:
        raise ValueError(f"Got accuracy={wrong[0]}. Expected a share from 0 to 1.")
    path = results_file(folder, script)
    run = {
        "recipe": recipe, "network": network, "data": data, "seed": seed, "epochs": epochs, "minutes": minutes,
        "cpu_minutes": cpu_minutes, "machine": machine(), "commit": commit(),
        "date": f"{datetime.datetime.now():%Y-%m-%d}", "command": command(script),
    }  # fmt: skip
    append(
        path,
        COLUMNS,
        [run | {"evaluation": name, "accuracy": f"{accuracy:.4f}"} for name, accuracy in accuracies.items()],
    )
    return path


def results_file(folder: Path, script: str) -> Path:
    """Return the path of the CSV file of a script.

    Raises:
      ValueError: if the file has other columns.
    """
    path = folder / f"{Path(script).stem}.csv"
    first = path.read_text().partition("\n")[0] if path.exists() else ""
    if first not in ("", ",".join(COLUMNS)):
        raise ValueError(f"{path} has the columns {first!r}. Expected {','.join(COLUMNS)!r}. Move the file away.")
    return path


def append(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Append lines to a CSV file in one piece, with the names of the columns if the file is new or empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    before = path.read_text() if path.exists() else ""
    if not before:
        writer.writeheader()
    elif not before.endswith("\n"):  # an editor left the end of the last line out
        text.write("\n")
    writer.writerows(rows)
    with path.open("a", newline="") as file:
        file.write(text.getvalue())


def require_writable(parser: argparse.ArgumentParser, *folders: Path) -> None:
    """Exit if a folder cannot be written, before the training and not after it."""
    for folder in folders:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
            parser.error(f"got the folder {folder}, but {existing} cannot be written to, or is a file")


def start(main: Callable[[], None]) -> None:
    """Run the `main` of a recipe. An error of resfit, a missing file or Ctrl-C ends it with the message only."""
    try:
        main()
    except (ResfitError, FileNotFoundError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    except KeyboardInterrupt:
        print("Stopped by Ctrl-C.", file=sys.stderr)
        raise SystemExit(130) from None


def machine() -> str:
    """Return the processor or accelerators, the cores, and the version of JAX."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    named = _processor() if device.platform == "cpu" else f"{jax.device_count()} x {device.device_kind}"
    return f"{named}, {cores} core{'' if cores == 1 else 's'}, jax {jax.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not on Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """Return the commit of the code, with a + if the code was changed since; the version without a repository of it."""
    of_resfit = (ROOT / ".git").exists() and Path(resfit.__file__).is_relative_to(ROOT)
    if not of_resfit or shutil.which("git") is None:
        return f"resfit {resfit.__version__}"
    try:
        found, changed = (
            subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", "resfit", "recipes"])
        )
    except subprocess.CalledProcessError:  # a repository of another user, or without a commit
        return f"resfit {resfit.__version__}"
    return found + ("+" if changed else "")


def command(script: str) -> str:
    """Return the command of this run."""
    return shlex.join(["python", f"recipes/{Path(script).name}", *sys.argv[1:]])
