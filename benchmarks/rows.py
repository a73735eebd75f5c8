"""The results of every measurement: rows of one table, each with a bound."""

import operator
import statistics
from collections.abc import Sequence
from typing import NamedTuple

RELATIONS = {"<=": operator.le, ">=": operator.ge}


class Row(NamedTuple):
    """One line of the table.

    Attributes:
      problem: the name of the measured problem.
      what: the measured quantity; "a / b" for the ratio of a to b.
      value: of a, with its unit.
      spread: minimum and maximum over the rounds.
      ratio: a over b, the median of the pairs.
      bar: the bound of the ratio, or else of the value: "<= 1.01". Empty without a bound.
      ok: True if the bound is kept; None without a bound.
      note: other numbers.
    """

    problem: str
    what: str
    value: str = ""
    spread: str = ""
    ratio: float | None = None
    bar: str = ""
    ok: bool | None = None
    note: str = ""


def keeps(number: float, bar: str) -> bool | None:
    """Return True if a number keeps a bound such as "<= 1.01"; None without a bound."""
    if not bar:
        return None
    relation, limit = bar.split()
    return bool(RELATIONS[relation](number, float(limit)))


def timed(problem: str, what: str, times: Sequence[float], note: str = "") -> Row:
    """Make a row of milliseconds."""
    return Row(problem, what, *_described(times), note=note)


def compared(problem: str, what: str, a: Sequence[float], b: Sequence[float], bar: str = "", note: str = "") -> Row:
    """Make a row of the milliseconds of `a`, and their ratio to those of `b` from the same rounds."""
    pairs = [x / y for x, y in zip(a, b, strict=True)]
    ratio = statistics.median(pairs)
    low, _, high = statistics.quantiles(pairs, n=4) if len(pairs) > 1 else pairs * 3
    notes = [f"half of {len(pairs)} pairs in {low:.3f} to {high:.3f}", note]
    return Row(problem, what, *_described(a), ratio, bar, keeps(ratio, bar), "; ".join(filter(None, notes)))


def counted(problem: str, what: str, number: float, bar: str = "", unit: str = "", note: str = "") -> Row:
    """Make a row of a number that does not vary."""
    return Row(problem, what, f"{number:,.4g} {unit}".strip(), bar=bar, ok=keeps(number, bar), note=note)


def divided(problem: str, what: str, a: float, b: float, unit: str, bar: str = "", note: str = "") -> Row:
    """Make a row of a number that does not vary, divided by another."""
    return Row(problem, what, f"{a:,.4g} {unit}", "", a / b, bar, keeps(a / b, bar), note)


def left_out(problem: str, what: str, why: str) -> Row:
    """Make a row for a measurement that was skipped."""
    return Row(problem, what, "not run", note=why)


def _described(times: Sequence[float]) -> tuple[str, str]:
    digits = 1 if statistics.median(times) >= 20 else 3
    return f"{statistics.median(times):,.{digits}f} ms", f"{min(times):,.{digits}f} to {max(times):,.{digits}f}"
