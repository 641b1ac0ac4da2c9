"""A row of a terminal, and the rows above its screen."""

from __future__ import annotations

from collections.abc import Generator, Iterator

# Characters of one step.
_SLICE = 1 << 16
# UTF-32: a character that is overwritten takes no more room.
_CODE, _WIDTH = "utf-32-le", 4
_BLANK = " ".encode(_CODE)
_BLANKS = 1024


class Row:
    """A row without end. Each character counts as one column, also a wide one."""

    __slots__ = ("_cells", "_is_overwritten", "_text")

    def __init__(self) -> None:
        # Most rows are written once. Others are in cells: the time of a change depends on its own length.
        self._text = ""
        self._cells: bytearray | None = None
        self._is_overwritten = False

    @property
    def length(self) -> int:
        """Its characters."""
        return len(self._text) if self._cells is None else len(self._cells) // _WIDTH

    def write(self, column: int, text: str) -> None:
        """Write a text over what is there, at most at the end."""
        if column < self.length:
            self._is_overwritten = True
        if self._cells is None and column == 0 and len(text) >= len(self._text):
            self._text = text
            return
        cells = self._as_cells()
        cells[column * _WIDTH : (column + len(text)) * _WIDTH] = _encode(text)

    def cut(self, column: int) -> None:
        """Erase from a column to the end."""
        if column == 0:
            self._text, self._cells, self._is_overwritten = "", None, False
        elif column < self.length:
            del self._as_cells()[column * _WIDTH :]

    def blank(self, start: int, end: int) -> None:
        """Erase columns, but keep the length."""
        end = min(end, self.length)
        if start < end:
            self.write(start, " " * (end - start))

    def pieces(self) -> Iterator[str]:
        """Yield its text. Blanks at the end of a row that was overwritten are what hid a longer text."""
        end = self._visible_end() if self._is_overwritten else self.length
        for start in range(0, end, _SLICE):
            if self._cells is None:
                yield self._text[start : min(start + _SLICE, end)]
            else:
                part = self._cells[start * _WIDTH : min(start + _SLICE, end) * _WIDTH]
                yield part.decode(_CODE, "surrogatepass")

    def _visible_end(self) -> int:
        if self._cells is None:
            return len(self._text.rstrip(" "))
        end = len(self._cells)
        for blanks in (_BLANK * _BLANKS, _BLANK):
            while self._cells.endswith(blanks, 0, end):
                end -= len(blanks)
        return end // _WIDTH

    def _as_cells(self) -> bytearray:
        if self._cells is None:
            self._cells = bytearray(_encode(self._text))
            self._text = ""
        return self._cells


class RowsAbove:
    """Collects rows that no sequence reaches any more."""

    def __init__(self) -> None:
        # Long rows are decoded in steps, at the end.
        self._parts: list[str | Row] = []
        self._short: list[str] = []
        self._characters = 0

    def add(self, text: str) -> None:
        """Add a text of bounded length."""
        self._short.append(text)
        self._characters += len(text)
        # One text in the place of many takes less memory.
        if self._characters >= _SLICE:
            self._join_short()

    def add_row(self, row: Row) -> None:
        """Add the text of a row."""
        if row.length <= _SLICE:
            for piece in row.pieces():
                self.add(piece)
        else:
            self._join_short()
            self._parts.append(row)

    def texts(self) -> Generator[None, None, list[str]]:
        """Return all of it in pieces of bounded length, in steps."""
        self._join_short()
        texts: list[str] = []
        for part in self._parts:
            for piece in [part] if isinstance(part, str) else part.pieces():
                texts.append(piece)
                yield
        return texts

    def _join_short(self) -> None:
        if self._short:
            self._parts.append("".join(self._short))
            self._short.clear()
            self._characters = 0


def _encode(text: str) -> bytes:
    return text.encode(_CODE, "surrogatepass")
