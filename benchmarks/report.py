"""Reports of measurements: a table in the terminal, a page of the documentation, and a picture."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.rows import Row

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
NOT_DRAWN = ("devices", "feeding", "zoo")  # for information, and too many
NO_GPU = "no gpu"  # the section of the row for a missing GPU
COLUMNS = ("problem", "what", "value", "from to", "ratio", "bar", "kept", "note")
CONTESTANTS = {  # beginning of a row's `what` -> color
    "fit": "tab:blue", "evaluate": "tab:blue", "predict": "tab:blue", "nnx.jit": "tab:orange", "Keras": "tab:green",
    "PyTorch": "tab:red",
}  # fmt: skip


class Measured(NamedTuple):
    """A row and its origin.

    Attributes:
      section: the name with which it is measured again.
      platform: "cpu" or "gpu".
      where: machine and versions.
      date: of the run.
      row: the row.
      commit: of resfit; "" if the tree had no git history.
      files: the files and folders of resfit that the row measures.
    """

    section: str
    platform: str
    where: str
    date: str
    row: Row
    commit: str = ""
    files: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Return the title of the table of this row."""
        return self.row.problem + (", GPU" if self.platform == "gpu" else "")


def read(path: Path) -> list[Measured]:
    """Return the rows of earlier runs; an empty list if the file does not exist."""
    if not path.exists():
        return []
    entries = json.loads(path.read_text())
    return [Measured(**{**entry, "row": Row(**entry["row"]), "files": tuple(entry["files"])}) for entry in entries]


def write(path: Path, rows: list[Measured]) -> None:
    """Write rows for `read`."""
    entries = [{**measured._asdict(), "row": measured.row._asdict()} for measured in rows]
    path.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n")


def merged(old: list[Measured], new: list[Measured], order: list[str]) -> list[Measured]:
    """Return the new rows, and the old rows of sections that were not measured again on this platform."""
    again = {(measured.platform, measured.section) for measured in new}
    rows = [measured for measured in old if (measured.platform, measured.section) not in again] + new
    if any(measured.platform == "gpu" and measured.section != NO_GPU for measured in rows):
        rows = [measured for measured in rows if measured.section != NO_GPU]
    return sorted(rows, key=lambda m: (m.platform, order.index(m.section) if m.section in order else len(order)))


def cells(row: Row) -> list[str]:
    """Return the cells of a row as text."""
    ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
    kept = {True: "yes", False: "NO", None: ""}[row.ok]
    return [row.problem, row.what, row.value, row.spread, ratio, row.bar, kept, row.note]


def show(rows: list[Row]) -> None:
    """Print one table in the terminal."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in ("value", "ratio", "bar") else "left")
    for row in rows:
        style = {True: "green", False: "bold red", None: ""}[row.ok]
        table.add_row(*map(escape, cells(row)), style=style)
    Console(width=None if Console().is_terminal else 220).print(table)


def page(rows: list[Measured]) -> str:
    """Return the tables of the documentation, one per problem, and the list of runs."""
    runs = list(dict.fromkeys(map(_run, rows)))
    letters = {run: chr(ord("A") + i) for i, run in enumerate(runs)}
    parts = []
    for title in dict.fromkeys(measured.title for measured in rows):
        parts += [f"### {title}", "", "| " + " | ".join([*COLUMNS[1:], "run"]) + " |"]
        parts.append("|" + "---|" * len(COLUMNS))
        for measured in rows:
            if measured.title == title:
                shown = [*cells(measured.row)[1:], letters[_run(measured)]]
                parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in shown) + " |")
        parts.append("")
    parts += ["### Runs", ""]
    for run in runs:
        date, commit, where = run
        parts.append(f"- **{letters[run]}**: {date}, measured at {commit[:7] or 'an unknown commit'}, {where}.")
    return "\n".join(parts)


def _run(measured: Measured) -> tuple[str, str, str]:
    return measured.date, measured.commit, measured.where


def between_markers(text: str, generated: str) -> str:
    """Replace the part of the text between the two markers.

    Raises:
      ValueError: unless each marker occurs once, in this order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"Expected {BEGIN} and {END} once each, in this order. Put them where the tables belong.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{generated.strip()}\n{END}{after}"


def draw(rows: list[Measured], path: Path) -> None:
    """Draw the ratios on a logarithmic axis, one panel per problem, with their bounds."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = [measured for measured in rows if measured.row.ratio is not None and measured.section not in NOT_DRAWN]
    rows = [measured for measured in rows if "memory" not in measured.row.what]
    shown = [measured.row for measured in rows]
    titles = list(dict.fromkeys(measured.title for measured in rows))
    groups = [[measured.row for measured in rows if measured.title == title] for title in titles]
    heights = [len(group) + 1.2 for group in groups]
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(10, 0.34 * sum(heights) + 0.8), height_ratios=heights, sharex=True, squeeze=False
    )
    for axis, title, group in zip(axes.flat, titles, groups, strict=True):
        _panel(axis, title, group)
    ticks = [0.2, 0.5, 0.8, 1, 1.25, 2, 4, 8]
    lowest, highest = min(row.ratio for row in shown), max(row.ratio for row in shown)
    axes.flat[-1].set_xlim(min(0.8, lowest * 0.75), max(1.25, highest * 1.3))
    axes.flat[-1].set_xticks([tick for tick in ticks if lowest * 0.75 <= tick <= highest * 1.3 or 0.8 <= tick <= 1.25])
    axes.flat[-1].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.flat[-1].set_xlabel("ratio of the first to the second, median of pairs; the mark is the bar to keep")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _panel(axis: Any, title: str, group: list[Row]) -> None:
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.axvline(1, color="0.6", linewidth=1, zorder=0)
    for i, row in enumerate(group):
        color = next((color for name, color in CONTESTANTS.items() if row.what.startswith(name)), "0.4")
        axis.plot([1, row.ratio], [i, i], color=color, linewidth=5, alpha=0.35, solid_capstyle="butt")
        axis.plot(row.ratio, i, "o", color=color, markersize=7)
        if row.bar:
            relation, limit = row.bar.split()
            mark = 4 if relation == "<=" else 5  # a caret that points to the forbidden side
            axis.plot(float(limit), i, marker=mark, color="black" if row.ok else "red", markersize=9)
        verdict = {True: " ✓", False: " ✗", None: ""}[row.ok]
        axis.annotate(
            f"{row.ratio:.2f}{verdict}", (row.ratio, i), (9 if row.ratio >= 1 else -9, 0), textcoords="offset points",
            va="center", ha="left" if row.ratio >= 1 else "right", fontsize=9,
            color="red" if row.ok is False else "black",
        )  # fmt: skip
    axis.set_yticks(range(len(group)), [row.what for row in group], fontsize=9)
    axis.set_ylim(len(group) - 0.4, -0.6)
    axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axis.spines[["top", "right"]].set_visible(False)
