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


def mark_rows(items: Iterable[pytest.Item], *, whole: bool) -> None:
    """Mark the rows of a table as slow that its marker `representatives` does not name.

    Args:
      items: the collected tests.
      whole: True if every row of a table was collected.

    Raises:
      pytest.UsageError: if a representative is not a row of a whole table.
    """
    missing: dict[str, set[str]] = {}
    for item in items:
        marker = item.get_closest_marker("representatives")
        if marker is not None:
            table, _, row = item.nodeid.partition("[")
            missing.setdefault(table, set(marker.args)).discard(row.removesuffix("]"))
            if row.removesuffix("]") not in marker.args:
                item.add_marker(pytest.mark.slow)
    if whole and any(missing.values()):
        raise pytest.UsageError(f"These representatives are not rows of their tables: {missing}.")
