"""Select the level of each row of a table: `make test`, `make test-all` or `make exhaustive`."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def only(quick: Container[Any], rows: Iterable[Any], slow: Container[Any] | None = None) -> list[Any]:
    """Return the rows as parameters: unmarked in `quick`; the others are slow, or exhaustive if `slow` lacks them."""

    def marks(row: Any) -> Any:
        if row in quick:
            return ()
        return pytest.mark.slow if slow is None or row in slow else pytest.mark.exhaustive

    found = [pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=marks(row)) for row in rows]
    assert any(not row.marks for row in found), "make test would have no row of the table"
    return found
