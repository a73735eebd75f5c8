"""Values of a run as text that fits a line, and finished epochs as a table in text or HTML."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_GAP = "  "
_WIDTH = 8  # of a value: loss and accuracy keep their columns from epoch to epoch


def number(name: str, value: float) -> str:
    """Return a value with four decimals, or with significant digits where those would hide it.

    Example:
      >>> number("loss", 0.25), number("loss", 2.5e-7), number("learning_rate", 3e-05)
      ('0.2500', '2.5e-07', '3e-05')
    """
    size = abs(value)
    if name.endswith("learning_rate") or name == "skipped_steps":
        return f"{value:.4g}"
    if value and size < 0.001:
        return f"{value:.3g}"
    return f"{value:.4f}" if not size >= 1000 else f"{value:.6g}" if size < 1e6 else f"{value:.3g}"


def numbers(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the scalar values as text, by name."""
    return {name: number(name, value) for name, value in values.items() if isinstance(value, float)}


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds, or hours, minutes and seconds.

    Example:
      >>> clock(5), clock(3725)
      ('0:05', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def fitted(parts: Sequence[tuple[int, str]], width: int) -> str:
    """Join (rank, text) parts in their order, without those of the highest ranks that do not fit the width."""
    kept = [part for part in parts if part[1]]
    while len(kept) > 1 and len(_GAP.join(text for _, text in kept)) > width:
        kept.remove(max(kept, key=lambda part: part[0]))
    return _GAP.join(text for _, text in kept)[:width]


def ranked(names: Iterable[str]) -> list[str]:
    """Return the names of values, those first that a narrow screen shows: first metric and loss, then the others."""
    rest = list(names)
    metric = next((name for name in rest if name not in ("loss", "learning_rate") and "val_" not in name), "loss")
    first = [name for name in (f"val_{metric}", metric, "loss", "val_loss") if name in rest]
    return [*dict.fromkeys([*first, *rest])]


def columns(row: Mapping[str, str], width: int) -> dict[str, int]:
    """Return the widths of the columns, by name, of a row that fits the width.

    Args:
      row: "epoch", the values, and "time" and "images/s", which are the first to be left out.
      width: of the screen.
    """
    widths = {name: max(len(name), len(text), _WIDTH * (name not in _OWN_WIDTH)) for name, text in row.items()}
    extra = [name for name in ("time", "images/s") if name in row]
    order = ["epoch", *ranked(name for name in row if name not in ("epoch", *extra)), *extra]
    while len(order) > 1 and sum(widths[name] + len(_GAP) for name in order) - len(_GAP) > width:
        order.pop()
    return {name: size for name, size in widths.items() if name in order}


_OWN_WIDTH = ("epoch",)


def aligned(widths: Mapping[str, int], row: Mapping[str, str]) -> str:
    """Return one line of a table; a value that the row lacks is a blank."""
    return _GAP.join(row.get(name, "").rjust(size) for name, size in widths.items())


def text_table(rows: Sequence[Mapping[str, str]], width: int) -> list[str]:
    """Return the lines of a table, the header first."""
    whole = {name: max((row.get(name, "") for row in rows), key=len) for name in names_of(rows)}
    widths = columns(whole, width)
    return [aligned(widths, {name: name for name in widths}), *(aligned(widths, row) for row in rows)]


def html_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a compact HTML table of these rows, without scripts or classes: a saved notebook keeps it."""
    names = names_of(rows)
    cell = '<{0} style="text-align:right;padding:1px 8px">{1}</{0}>'
    lines = [("th", {name: name for name in names}), *(("td", row) for row in rows)]
    body = "".join(
        f"<tr>{''.join(cell.format(tag, html.escape(row.get(name, ''))) for name in names)}</tr>" for tag, row in lines
    )
    return f'<table style="font-size:smaller;font-variant-numeric:tabular-nums">{body}</table>'


def names_of(rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the names of all columns; the time stays last."""
    names = dict.fromkeys(name for row in rows for name in row)
    return sorted(names, key=lambda name: name in ("time", "images/s"))
