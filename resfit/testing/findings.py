"""What a kit did with a part of a network, and what it found wrong."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from resfit.errors import BlockCheckError


@dataclass(frozen=True)
class PartReport:
    """What `check_block`, `check_stem` or `check_norm` did and found.

    Attributes:
        checks: everything that was looked at.
        notes: what is no mistake, but could not be checked.
    """

    checks: tuple[str, ...]
    notes: tuple[str, ...]


class Wrong(Exception):  # noqa: N818 - what is wrong, in the words of the report
    """Something is wrong with the part."""


class Findings:
    """Collects what is wrong, each once, with where it was seen.

    Args:
        name: of the part.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._checks: list[str] = []
        self._problems: dict[str, list[str]] = {}
        self.notes: list[str] = []

    @contextlib.contextmanager
    def check(self, what: str) -> Iterator[None]:
        """What is raised inside is written down."""
        self._checks.append(what)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a part raises is what this is about
            text = str(error) if isinstance(error, Wrong) else f"it raised {type(error).__name__}: {error}"
            self._problems.setdefault(text, []).append(what)

    def report(self) -> PartReport:
        """The report.

        Raises:
            BlockCheckError: if anything was wrong.
        """
        if self._problems:
            lines = [f"- {text} (in: {'; '.join(where)})" for text, where in self._problems.items()]
            raise BlockCheckError(f"{self._name}: {len(lines)} problem(s).\n" + "\n".join(lines))
        return PartReport(tuple(self._checks), tuple(dict.fromkeys(self.notes)))


def name_of(build: object) -> str:
    """What to call a class or function."""
    return getattr(getattr(build, "func", build), "__name__", type(build).__name__)
