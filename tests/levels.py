"""Which rows of a table run at which level: in `make test`, in `make test-all`, in `make exhaustive`."""

from collections.abc import Iterable
from typing import Any

import pytest


def only(quick: Iterable[Any], rows: Iterable[Any], slow: Iterable[Any] | None = None) -> list[Any]:
    """The rows as parameters: unmarked in `quick`; the others are slow, or exhaustive if `slow` lacks them."""
    rows, quick = list(rows), list(quick)
    slow = rows if slow is None else list(slow)
    assert all(row in rows for row in [*quick, *slow]), f"{[row for row in [*quick, *slow] if row not in rows]}"

    def marks(row: Any) -> Any:
        return () if row in quick else pytest.mark.slow if row in slow else pytest.mark.exhaustive

    return [pytest.param(row, marks=marks(row)) for row in rows]
