"""The problems that a test kit finds."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from resfit.errors import BlockCheckError


@dataclass(frozen=True)
class PartReport:
    """The report of `check_block`, `check_stem` or `check_norm`.

    Attributes:
        checks: the names of all checks.
        notes: properties that could not be checked.
    """

    checks: tuple[str, ...]
    notes: tuple[str, ...]


class Wrong(Exception):  # noqa: N818 - its text is a line of the report
    """A problem, in the words of the report."""


class Findings:
    """A list of problems, each with the names of the checks that found it.

    Args:
        name: the name of the tested object.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.checks: list[str] = []
        self._problems: dict[str, list[str]] = {}
        self.notes: list[str] = []

    @contextlib.contextmanager
    def check(self, what: str) -> Iterator[None]:
        """Run a check, and record what it raises."""
        self.checks.append(what)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - any exception of the tested object is a finding
            text = str(error) if isinstance(error, Wrong) else f"it raised {type(error).__name__}: {error}"
            self._problems.setdefault(text, []).append(what)

    def raise_problems(self, error: type[Exception]) -> None:
        """Raise one error that lists all problems, if there are any."""
        if self._problems:
            lines = [f"- {text} (in: {'; '.join(where)})" for text, where in self._problems.items()]
            raise error(f"{self._name}: {len(lines)} problem(s).\n" + "\n".join(lines))

    def report(self) -> PartReport:
        """Return the report.

        Raises:
            BlockCheckError: if there are problems.
        """
        self.raise_problems(BlockCheckError)
        return PartReport(tuple(self.checks), tuple(dict.fromkeys(self.notes)))


def name_of(build: object) -> str:
    """Return the name of a class or function."""
    return getattr(getattr(build, "func", build), "__name__", type(build).__name__)
