"""Write docs/results.md and its pictures from results/*.csv: `make results`. `tests/test_results.py` compares them."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from tests.recipes.fashion import load

ROOT = Path(__file__).parents[1]
INTRO = """\
# Results

`make results` writes this page from `results/*.csv`. The recipes append a line to these files for each evaluation of
each run. Accuracies are in percent, with several runs as mean ± standard deviation. A `+` after a commit means that the
code differed from it.

The evaluation *last epoch* uses the weights as they are after the last epoch, *ema* their running average, *flip* the
mean over each image and its mirror image, and *flip+shift* the mean over six views of each image. Minutes are those of
a run with compilation, on the clock and, in parentheses, of the processor; runs that train in one call share theirs.
"""
CHANGES = """\
The change of the accuracy by one technique alone, in points: the mean over pairs of runs with equal seeds, ± its
standard error.
"""
CURVES = """\
*Mean over the runs, and their range. Training values are means over the epoch, with augmentation; dashed lines are
those of held-out images.*
"""
COLUMNS = (
    "recipe",
    "network",
    "data",
    "evaluation",
    "epochs",
    "runs",
    "accuracy",
    "minutes (CPU)",
    "machine",
    "commit",
    "date",
)
Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """Return the lines of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def grouped(rows: list[Row], *names: str) -> list[list[Row]]:
    """Return the rows with equal values in these columns, in the order of their first rows."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.values())


def check(path: Path, rows: list[Row], line: str) -> None:
    """Raise ValueError if the file has a line of a run twice: one for each `line`, "evaluation" or "epoch"."""
    for same in grouped(rows, "recipe", "network", "data", "epochs", "seed", line):
        if len(same) > 1:
            raise ValueError(
                f"{path} has {len(same)} lines of {same[0]['recipe']}, {line} {same[0][line]}, seed "
                f"{same[0]['seed']}. Expected one. Remove the older ones."
            )


def cells(rows: list[Row]) -> list[str]:
    """Return the cells of the runs of one recipe, which differ in their seeds."""
    accuracies = [100 * float(row["accuracy"]) for row in rows]
    spread = f" ± {np.std(accuracies, ddof=1):.2f}" if len(rows) > 1 else ""
    minutes = np.mean([float(row["minutes"]) for row in rows])
    busy = [float(row["cpu_minutes"]) for row in rows if row["cpu_minutes"]]
    every = {name: ", ".join(dict.fromkeys(row[name] for row in rows)) for name in rows[0]}
    every |= {
        "runs": str(len(rows)),
        "accuracy": f"{np.mean(accuracies):.2f}{spread}",
        "minutes (CPU)": f"{minutes:.1f}" + (f" ({np.mean(busy):.1f})" if busy else ""),
    }
    return [every[name].replace("|", "\\|") for name in COLUMNS]


def table(head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def changes(rows: list[Row]) -> list[list[str]]:
    """Return what each technique alone changes, for recipes that were also run with one technique more."""
    runs, found = load("runs"), []
    bases = dict.fromkeys(row["recipe"].partition(" + ")[0] for row in rows if " + " in row["recipe"])
    for group in grouped(rows, "network", "data", "epochs"):
        for base in [base for base in bases if any(row["recipe"] == base for row in group)]:
            of_base = [row for row in group if row["recipe"].partition(" + ")[0] == base]
            for name, values in runs.differences(of_base).items():
                found.append(
                    [base, name, group[0]["data"], group[0]["epochs"], str(len(values)), runs.mean_and_error(values)]
                )
    return found


def page(folder: Path) -> str:
    """Return the page of a folder of results."""
    lines = [INTRO]
    if not list(folder.glob("*.csv")):
        lines += ["There are no results yet.", ""]
    for path in sorted(folder.glob("*.csv")):
        rows = read(path)
        check(path, rows, "evaluation")
        groups = grouped(rows, "recipe", "network", "data", "evaluation", "epochs")
        lines += [f"## recipes/{path.stem}.py", "", *table(COLUMNS, [cells(group) for group in groups]), ""]
        if found := changes(rows):
            head = ("recipe", "technique", "data", "epochs", "pairs", "change")
            lines += [CHANGES, *table(head, found), ""]
        commands = dict.fromkeys(row["command"] for row in rows)
        lines += ["```bash", *commands, "```", ""]
        curves = folder / "curves" / path.name
        if curves.exists():
            check(curves, read(curves), "epoch")
            lines += [f"![Loss and accuracy by epoch](pictures/results_{path.stem}.png)", ""]
            lines += [CURVES]
    return "\n".join(lines)


def draw(curves: Path, picture: Path) -> None:
    """Draw loss and accuracy by epoch, a color for each recipe: in training as lines, in validation dashed."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    rows = [row for row in read(curves) if "validation" not in row["data"]]
    groups = grouped(rows, "recipe", "network", "data", "epochs")
    for i, group in enumerate(groups):
        first, color = group[0], f"C{i}"
        label = f"{first['recipe']}, {first['network']}, {first['data']}, {first['epochs']} epochs"
        for axis, quantity in zip(axes, ("loss", "accuracy"), strict=True):
            for name, style in ((quantity, "-"), (f"val_{quantity}", "--")):
                _line(axis, group, name, style, color, label if name == "loss" else None)
    for axis, quantity in zip(axes, ("loss", "accuracy (%)"), strict=True):
        axis.set(xlabel="epoch", ylabel=quantity)
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def _line(axis: Any, group: list[Row], name: str, style: str, color: str, label: str | None) -> None:
    rows = [row for row in group if row[name]]
    if not rows:
        return
    by_epoch = grouped(rows, "epoch")
    epochs = [int(same[0]["epoch"]) for same in by_epoch]
    scale = 100 if name.endswith("accuracy") else 1
    values = [[scale * float(row[name]) for row in same] for same in by_epoch]
    axis.plot(epochs, [np.mean(same) for same in values], style, color=color, label=label)
    axis.fill_between(epochs, list(map(min, values)), list(map(max, values)), color=color, alpha=0.2, linewidth=0)


if __name__ == "__main__":
    (ROOT / "docs" / "results.md").write_text(page(ROOT / "results"))
    for curves in sorted((ROOT / "results" / "curves").glob("*.csv")):
        draw(curves, ROOT / "docs" / "pictures" / f"results_{curves.stem}.png")
