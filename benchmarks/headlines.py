"""The headline tables of the documentation: each row is compared with the stored rows and with the git history.

    python -m benchmarks.headlines    # part of `make docs`

A headline table is a table with a column "measured at". Each of its rows names the stored rows behind it in a comment:
`<!-- rows: GROUP ... PLATFORM -->`. The numbers of the row must be those of the stored rows. If the measured files
changed since the stored commit, the column must name this commit.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.commits import History
from benchmarks.report import Measured, read

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/cpu.md", "docs/benchmarks.md")
COLUMN = "measured at"
ROWS = re.compile(r"<!-- rows: ([a-z0-9_ ]+) (cpu|gpu) -->")
COMMIT = re.compile(r"\b[0-9a-f]{7,40}\b")
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?")


class Headline(NamedTuple):
    """A row of a headline table.

    Attributes:
      place: page and line.
      groups: of the stored rows; empty if the row names none.
      platform: of the stored rows.
      numbers: as they are written, without the first column.
      marks: the commits in the column "measured at".
    """

    place: str
    groups: tuple[str, ...]
    platform: str
    numbers: tuple[str, ...]
    marks: tuple[str, ...]


def headlines(page: str, text: str) -> Iterator[Headline]:
    """Yield the rows of all headline tables of a page."""
    column: int | None = None
    for number, line in enumerate(text.splitlines(), 1):
        cells = [cell.strip() for cell in ROWS.sub("", line).strip().strip("|").split("|")]
        if not line.startswith("|"):
            column = None
        elif column is None:
            column = cells.index(COLUMN) if COLUMN in cells else len(cells)
        elif column < len(cells) and set(line) - set("|-: "):
            named = ROWS.search(line)
            yield Headline(
                f"{page}:{number}",
                tuple(named[1].split()) if named else (),
                named[2] if named else "",
                tuple(NUMBER.findall(" ".join(cells[1:column] + cells[column + 1 :]))),
                tuple(COMMIT.findall(cells[column])),
            )


def wrong_numbers(headline: Headline, stored: list[Measured]) -> list[str]:
    """Return the numbers of a headline that are not rounded numbers of the stored rows."""
    rows = [measured.row for measured in stored]
    text = " ".join(f"{row.value} {row.spread} {row.note} {'' if row.ratio is None else row.ratio}" for row in rows)
    known = [_number(found) for found in NUMBER.findall(text)]

    def is_known(written: str) -> bool:
        half = 0.5 * 10.0 ** -len(written.partition(".")[2]) + 1e-9
        return any(abs(_number(written) - number) <= half for number in known)

    return [written for written in headline.numbers if not is_known(written)]


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def faults(headline: Headline, rows: list[Measured], history: History, notes: list[str]) -> Iterator[str]:
    """Yield what is wrong with a headline.

    Args:
      headline: the row.
      rows: all stored rows.
      history: of the tree.
      notes: receives a line for each comparison that is not possible.
    """
    place, groups, marks = headline.place, headline.groups, headline.marks
    stored = [measured for measured in rows if measured.section in groups and measured.platform == headline.platform]
    missing = set(groups) - {measured.section for measured in stored}
    if missing or not groups:
        yield (
            f"{place}: no stored rows of {sorted(missing) or 'any group'}. Expected a comment such as "
            "<!-- rows: tiny cpu --> that names groups of docs/benchmarks.json and a platform."
        )
        return
    wrong = wrong_numbers(headline, stored)
    if wrong:
        yield f"{place}: no stored row of {', '.join(groups)} has {', '.join(wrong)}. Copy the measured numbers."
    again = f"Measure again with `make bench ARGS='--only {' '.join(groups)}'`"
    for commit, paths in dict.fromkeys((measured.commit, measured.files) for measured in stored):
        if any(commit.startswith(mark) for mark in marks):
            continue
        if not commit:
            yield f"{place}: the stored rows have no commit. {again} in a git repository."
        elif not history.known:
            notes.append(f"{place}: not compared with its commit {commit}, as this tree has no git history.")
        elif history.has(commit):
            change = history.newest_change(commit, paths)
            if change:
                yield (
                    f"{place}: the row was measured at {commit}, and the files that it measures changed in {change}. "
                    f"{again}, or write {commit[:7]} into the column {COLUMN!r}."
                )
        elif history.shallow:
            notes.append(f"{place}: not compared with its commit {commit}, which this shallow clone lacks.")
        else:
            yield f"{place}: the repository has no commit {commit}, at which the row was measured. {again}."
    for mark in marks:
        if not any(measured.commit.startswith(mark) for measured in stored):
            yield f"{place}: marked {COLUMN} {mark}. Expected the commit of its stored rows, or nothing."


def check(root: Path) -> tuple[list[str], list[str]]:
    """Return the faults of all headlines below a root, and the comparisons that are not possible."""
    rows, history = read(root / "docs" / "benchmarks.json"), History(root)
    found: list[str] = []
    notes: list[str] = []
    for page in PAGES:
        shown = list(headlines(page, (root / page).read_text()))
        if not shown:
            found.append(f"{page}: no headline table. Expected a table with a column {COLUMN!r}.")
        for headline in shown:
            found += faults(headline, rows, history, notes)
    return found, notes


if __name__ == "__main__":
    found, notes = check(ROOT)
    for line in notes:
        print(line)
    sys.exit("\n".join(found) or None)
