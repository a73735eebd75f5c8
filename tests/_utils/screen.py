"""The screen of a terminal, as far as the progress display uses one."""

import re

_PIECE = re.compile(r"\x1b\[(?P<mode>[?]?)(?P<count>[\d;]*)(?P<command>[A-Za-z])|(?P<other>.)", re.DOTALL)


class Screen:
    """What a terminal of this width shows after it received some text.

    It wraps long lines, as a terminal does, and raises for a control sequence that it does not know.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.cells: list[list[str]] = [[]]
        self.row = self.column = 0

    def feed(self, text: str) -> None:
        for piece in _PIECE.finditer(text):
            if piece["other"] is None:
                self._command(piece["command"], int(piece["count"] or 1) if not piece["mode"] else 0)
            elif piece["other"] == "\r":
                self.column = 0
            elif piece["other"] == "\n":
                self._down()
            else:
                self._put(piece["other"])

    def _command(self, command: str, count: int) -> None:
        if command == "A":
            self.row = max(0, self.row - count)
        elif command == "K":
            self.cells[self.row] = [] if count == 2 else self.cells[self.row][: self.column]
        elif command not in "mhl":
            raise ValueError(f"Unknown command {command!r}.")

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.cells):
            self.cells.append([])

    def _put(self, character: str) -> None:
        if self.column == self.width:
            self.column = 0
            self._down()
        line = self.cells[self.row]
        line.extend(" " * (self.column + 1 - len(line)))
        line[self.column] = character
        self.column += 1

    @property
    def lines(self) -> list[str]:
        return ["".join(line).rstrip() for line in self.cells]
