"""The report of `doctor`: its checks, as a table in a terminal and in a notebook."""

import html
import io
from dataclasses import dataclass

from resfit.nets.probe import BlockStatistics


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
      name: such as "inputs".
      status: "ok", "problem", or "skipped" if the check could not run.
      found: the observation, with numbers.
      fix: the remedy for a problem; otherwise "".
    """

    name: str
    status: str
    found: str
    fix: str = ""


@dataclass(frozen=True, repr=False)
class DoctorReport:
    """The result of `doctor`. Its text is a table, which a notebook shows.

    Attributes:
      checks: all of them, in order.
      blocks: the statistics of every block in one training step; empty if the step could not run.
    """

    checks: tuple[Check, ...]
    blocks: tuple[BlockStatistics, ...]

    @property
    def problems(self) -> tuple[Check, ...]:
        """The checks that found a problem."""
        return tuple(check for check in self.checks if check.status == "problem")

    def __getitem__(self, name: str) -> Check:
        return {check.name: check for check in self.checks}[name]

    @property
    def _title(self) -> str:
        n = len(self.problems)
        return f"{n} problem{'' if n == 1 else 's'} found" if n else "No problem found"

    def __repr__(self) -> str:
        return f"<DoctorReport: {self._title.lower()} in {len(self.checks)} checks>"

    def _repr_html_(self) -> str:
        """Return the table, for notebooks."""
        return f"<pre>{html.escape(str(self))}</pre>"

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=self._title, title_justify="left", show_lines=True)
        for column in ("check", "", "result, and how to fix a problem"):
            table.add_column(column)
        for check in self.checks:
            table.add_row(check.name, check.status, "\n".join(filter(None, [check.found, check.fix])))
        console = Console(file=io.StringIO(), width=110, color_system=None)
        console.print(table, markup=False)
        return str(console.file.getvalue())  # type: ignore[attr-defined]
