"""Outputs of the progress display: a terminal or a log file, and a notebook."""

import html
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from resfit._utils.optional_import import load_package
from resfit.callbacks.display.line import Line
from resfit.callbacks.display.text import aligned, columns, html_table, names_of, text_table

if TYPE_CHECKING:
    import rich.console
    import rich.live

_NOTEBOOK_SECONDS = 0.5  # between two updates of a notebook, each of which sends the table to the browser
_NOTEBOOK_COLUMNS = 100


class Screen(Protocol):
    """Shows the line of what is running, and keeps what has finished."""

    live: bool
    """True if the line of what is running is shown."""

    def show(self, line: Line) -> None:
        """Show this line from now on, as it is now."""

    def row(self, line: Line, row: Mapping[str, str]) -> None:
        """Keep the row of a finished epoch."""

    def finish(self, line: Line, seconds: float) -> None:
        """Keep the line of an evaluation or a prediction that ended."""

    def note(self, text: str) -> None:
        """Keep a remark."""

    def stop(self) -> None:
        """Release the screen; a line that did not finish stays as it is."""


class Terminal:
    """A terminal or a log file: a table that grows by a line an epoch, above the line of what is running.

    Args:
      console: of the terminal. That of a file or a pipe without a terminal has 80 columns.
      live: False to show no line of what is running, which needs control characters.
    """

    _shown: "ClassVar[Terminal | None]" = None  # the one whose line is shown

    def __init__(self, console: "rich.console.Console", live: bool) -> None:
        self.live = live
        self._console = console
        self._display: rich.live.Live | None = None
        self._line: Line | None = None
        self._columns: dict[str, int] = {}
        self._rows = self._width = 0

    def show(self, line: Line) -> None:
        # An evaluation inside a callback of fit only leaves its result above the line of the fit.
        if not self.live or self._below() not in (None, self):
            return
        if line is not self._line or self._display is None:
            import rich.live

            self._end()
            self._line = line
            # The thread of the display draws ten times a second, also while a program compiles.
            self._display = rich.live.Live(
                get_renderable=self._drawn, console=self._console, refresh_per_second=10, transient=True
            )
            self._display.start()
            Terminal._shown = self

    def _drawn(self) -> Any:
        import rich.text

        options = self._console.options
        text = "" if self._line is None else self._line.text(options.max_width, ascii_only=options.ascii_only)
        return rich.text.Text(text, no_wrap=True, overflow="crop")

    def refresh(self) -> None:
        """Draw the line now."""
        if self._display is not None:
            self._display.refresh()

    def row(self, line: Line, row: Mapping[str, str]) -> None:
        self._end()
        width, height = self._console.size
        new = not set(columns(row, width)) <= set(self._columns)  # validation_freq: not all epochs have all values
        if new or width != self._width or self._rows >= max(10, height - 4):
            self._columns = columns({name: row.get(name, "") for name in names_of([self._columns, row])}, width)
            self._width, self._rows = width, 0
            self._print(aligned(self._columns, {name: name for name in self._columns}))
        self._rows += 1
        self._print(aligned(self._columns, row))

    def finish(self, line: Line, seconds: float) -> None:
        self._end()
        self._print(line.finished(self._console.width, seconds))

    def note(self, text: str) -> None:
        self._print(text)

    def stop(self) -> None:
        line = self._line
        self._end()
        if line is not None:
            self._print(line.text(self._console.width))
        self._columns = {}

    def _end(self) -> None:
        if self._display is not None:
            self._display.stop()
        self._display = self._line = None
        if Terminal._shown is self:
            Terminal._shown = None

    def _below(self) -> "Terminal | None":
        """Return whose line this terminal shows now, which can be that of a fit around this call."""
        shown = Terminal._shown
        return shown if shown is not None and shown._console.file is self._console.file else None

    def _print(self, text: str) -> None:
        console = (self._below() or self)._console  # a console writes above its own line only
        console.print(text, highlight=False, markup=False, soft_wrap=True)


class Notebook:
    """A notebook: one HTML table that grows by a row an epoch, and the line of what is running below it."""

    live = True

    def __init__(self) -> None:
        self._drawn = 0.0
        self._start()

    def _start(self) -> None:
        self._handle: Any = None
        self._rows: list[dict[str, str]] = []
        self._notes: list[str] = []
        self._line: Line | None = None

    def show(self, line: Line) -> None:
        now = time.perf_counter()
        if line is not self._line or now - self._drawn >= _NOTEBOOK_SECONDS:
            self._line, self._drawn = line, now
            self._draw([line.text(_NOTEBOOK_COLUMNS)])

    def row(self, line: Line, row: Mapping[str, str]) -> None:
        self._rows.append(dict(row))
        self._line = None
        self._draw([])

    def finish(self, line: Line, seconds: float) -> None:
        self._line = None
        self._notes.append(line.finished(_NOTEBOOK_COLUMNS, seconds))
        self._draw([])

    def note(self, text: str) -> None:
        self._notes.append(text)

    def stop(self) -> None:
        if self._line is not None:
            self._notes.append(self._line.text(_NOTEBOOK_COLUMNS))
        if self._notes:
            self._draw([])
        self._start()

    def _draw(self, running: list[str]) -> None:
        display = load_package("IPython.display", "A table in a notebook", "pip install ipython").display
        lines = [*self._notes, *running]
        below = "".join(f'<div style="font-size:smaller">{html.escape(line)}</div>' for line in lines)
        above = (html_table(self._rows), text_table(self._rows, _NOTEBOOK_COLUMNS)) if self._rows else ("", [])
        data = {"text/html": above[0] + below, "text/plain": "\n".join([*above[1], *lines])}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)
