r"""Turn output into the text that a terminal shows at its end.

``\r`` and ``\b`` move the cursor, and later text overwrites. Escape sequences move it, erase, or vanish.
"""

# pyte was tried: it has a screen of fixed width, so it breaks long lines, and takes 100 times as long.
# The output is hostile: each character is read once, and each sequence costs a bounded time.

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import TypeAlias

from .terminal_row import Row, RowsAbove

_Steps: TypeAlias = Generator[None, None, str]
_Join: TypeAlias = Callable[[list[str]], _Steps]

# Characters of a slice, and sequences in one step: 5 ms.
_SLICE = 1 << 16
_SEQUENCES = 1_000

# A sequence reaches so many rows. Older ones have scrolled off.
_ROWS = 200
# A sequence moves the cursor at most here. A line of text may be longer.
_COLUMNS = 1_000
# Blanks in all, before text that was written beyond the end of its line: "\x1b[999Cx\n" grows 100-fold.
_BLANKS = 1 << 20

# U+0080 to U+009F are old control characters, but also what mojibake is made of ("â€\x9d" was a quote). So
# only whole sequences with parameters count, and the other characters stay.
_ACTIVE = "\r\b\x0e\x0f\x1b\x9b\x9d"
_PLAIN = re.compile(f"[^{_ACTIVE}]+")
# The last two choose a set of characters.
_REPEATED = re.compile("\r+|\b+|[\x0e\x0f]+")
_CONTROL_SEQUENCE = re.compile(r"\x1b\[([0-?]{0,256})([ -/]{0,8})([@-~]?)")
_OLD_CONTROL_SEQUENCE = re.compile(r"\x9b([0-?]{0,256})([ -/]{0,8})([@-~]?)")
_OLD_TITLE = re.compile(r"\x9d(?:[0-9]{1,4}(?:;[^\x00-\x1f\x80-\x9f]{0,2048}(\x07|\x9c|\x1b\\)?)?)?")
_ESCAPE = re.compile(r"\x1b()([ -/]{0,8})([0-~]?)")
# The text of these, such as a window's title, ends before the end of its line: nothing else is lost with it.
_STRINGS = "]PX^_"
_STRING_END = re.compile("[\x07\x9c\x18\x1a\x1b\n]")


def terminal_text(text: str, join: _Join | None = None) -> _Steps:
    """Return the text as a terminal shows it, in steps; a text without control characters is returned itself.

    Args:
        join: joins pieces of text, in steps.
    """
    for character in _ACTIVE:
        if character in text:
            break
        yield
    else:
        return text
    return (yield from join_terminal_text(_slices(text), join))


def join_terminal_text(texts: Iterable[str], join: _Join | None = None) -> _Steps:
    """Return what a terminal shows after texts, each of a bounded length, were written to it one by one."""
    screen = _Screen()
    for text in texts:
        yield from screen.write(text)
    return (yield from screen.finish(join or _join))


def finish(steps: _Steps) -> str:
    """Do all steps at once, for callers without an event loop."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            shown: str = end.value
            return shown


def _slices(text: str) -> Iterable[str]:
    return (text[start : start + _SLICE] for start in range(0, len(text), _SLICE))


def _join(pieces: list[str]) -> _Steps:
    yield
    return "".join(pieces)


class _Screen:
    """Rows without end, and the cursor in one of the last."""

    def __init__(self) -> None:
        self._above = RowsAbove()
        self._rows = deque([Row()])
        self._row = self._column = 0
        self._saved = 0, 0
        self._blanks = _BLANKS
        # The beginning of a sequence, at the end of what was written until now.
        self._unfinished = ""
        self._in_string = False

    def write(self, text: str) -> Generator[None]:
        """Write a text, in steps."""
        text = self._unfinished + text
        self._unfinished = ""
        at = taken = 0
        while at < len(text):
            after = self._take(text, at)
            if after == at:
                self._unfinished = text[at:]
                break
            at = after
            taken += 1
            if not taken % _SEQUENCES:
                yield
        yield

    def finish(self, join: _Join) -> _Steps:
        """Return the text of all rows, in steps."""
        # An escape sequence without its end has no text.
        if self._unfinished.startswith(("\x9b", "\x9d")):
            self._write_lines(self._unfinished.rstrip("\x1b"))
        while len(self._rows) > 1:
            self._scroll()
            yield
        self._above.add_row(self._rows[0])
        return (yield from join((yield from self._above.texts())))

    def _take(self, text: str, at: int) -> int:
        """Do what stands at a position; return the next one, or the same if its end has not come yet."""
        if self._in_string:
            found = _STRING_END.search(text, at)
            if found is None:
                return len(text)
            self._in_string = False
            # A line feed and an escape sequence still act.
            if found[0] not in "\n\x1b":
                return found.end()
            at = found.start()
        plain = _PLAIN.match(text, at)
        if plain is not None:
            self._write_lines(plain[0])
            return plain.end()
        repeated = _REPEATED.match(text, at)
        if repeated is not None:
            count = len(repeated[0]) if text[at] == "\b" else 0
            self._column = 0 if text[at] == "\r" else max(0, self._column - count)
            return repeated.end()
        match text[at]:
            case "\x9b":
                return self._take_old_sequence(text, at)
            case "\x9d":
                return self._take_old_title(text, at)
            case _:
                return self._take_escape(text, at)

    def _take_escape(self, text: str, at: int) -> int:
        second = text[at + 1 : at + 2]
        if second and second in _STRINGS:
            self._in_string = True
            return at + 2
        found = (_CONTROL_SEQUENCE if second == "[" else _ESCAPE).match(text, at)
        if found is None:
            return at + 1
        parameters, between, final = found.groups()
        if not final and found.end() == len(text):
            return at
        if second == "[":
            self._control(parameters, between, final)
        elif not between:
            self._escape(final)
        return found.end()

    def _take_old_sequence(self, text: str, at: int) -> int:
        found = _OLD_CONTROL_SEQUENCE.match(text, at)
        if found is not None:
            parameters, between, final = found.groups()
            if not final and found.end() == len(text):
                return at
            if parameters and final:
                self._control(parameters, between, final)
                return found.end()
        self._write(text[at])
        return at + 1

    def _take_old_title(self, text: str, at: int) -> int:
        found = _OLD_TITLE.match(text, at)
        if found is not None:
            if found[1]:
                return found.end()
            if text[found.end() :] in ("", "\x1b"):
                return at
        self._write(text[at])
        return at + 1

    def _escape(self, final: str) -> None:
        match final:
            case "7":
                self._saved = self._row, self._column
            case "8":
                self._restore()
            case "M":
                self._row = max(0, self._row - 1)
            case "c":
                self._erase_rows(2)
                self._column = 0
            case _:
                pass

    def _restore(self) -> None:
        row, self._column = self._saved
        self._row = min(row, len(self._rows) - 1)

    def _control(self, parameters: str, between: str, final: str) -> None:
        # Others are of one kind of terminal, such as "?25l", which hides the cursor.
        if not final or between or parameters.startswith(("<", "=", ">", "?")):
            return
        numbers = [int(each) if each.isdecimal() else 0 for each in parameters.split(";")]
        match final:
            case "J":
                self._erase_rows(numbers[0])
            case "K":
                self._erase_row(numbers[0])
            case "X":
                end = self._column + min(max(1, numbers[0]), _COLUMNS)
                self._rows[self._row].blank(self._column, end)
            case "s":
                self._saved = self._row, self._column
            case "u":
                self._restore()
            case _:
                self._move(final, [max(1, each) for each in numbers])

    def _move(self, final: str, numbers: list[int]) -> None:
        row, column, count = self._row, self._column, numbers[0]
        match final:
            case "A" | "B" | "E" | "F":
                row += count if final in "BE" else -count
                column = 0 if final in "EF" else column
            case "C":
                column = max(column, min(column + count, _COLUMNS))
            case "D":
                column -= count
            case "G" | "`":
                column = min(count - 1, _COLUMNS)
            case "H" | "f":
                row, column = count - 1, min((*numbers, 1)[1] - 1, _COLUMNS)
            case "d":
                row = count - 1
            case _:
                pass
        self._row = min(max(0, row), len(self._rows) - 1)
        self._column = max(0, column)

    def _erase_row(self, which: int) -> None:
        row = self._rows[self._row]
        match which:
            case 0:
                row.cut(self._column)
            case 1:
                row.blank(0, min(self._column + 1, _COLUMNS))
            case 2:
                row.cut(0)
            case _:
                pass

    def _erase_rows(self, which: int) -> None:
        if which == 0:
            self._rows[self._row].cut(self._column)
            while len(self._rows) > self._row + 1:
                self._rows.pop()
        elif which in (2, 3):
            # The cursor stays at its column, but what follows is the first row again.
            self._rows = deque([Row()])
            self._row = 0
            self._saved = 0, self._saved[1]

    def _write_lines(self, text: str) -> None:
        start, has_skipped = 0, False
        while (end := text.find("\n", start)) >= 0:
            self._write(text[start:end])
            start = end + 1
            if self._row == len(self._rows) - 1 and not has_skipped:
                has_skipped = True
                head, *rest = text[start:].rsplit("\n", _ROWS)
                if len(rest) == _ROWS:
                    # These lines scroll off at once.
                    start += self._scroll_past(head)
                    continue
            self._feed_line()
        self._write(text[start:])

    def _scroll_past(self, lines: str) -> int:
        while len(self._rows) > 1:
            self._scroll()
        self._rows.append(Row())
        self._scroll()
        self._above.add(lines + "\n")
        self._row = self._column = 0
        return len(lines) + 1

    def _feed_line(self) -> None:
        self._row += 1
        self._column = 0
        if self._row == len(self._rows):
            self._rows.append(Row())
            if len(self._rows) > _ROWS:
                self._scroll()

    def _scroll(self) -> None:
        """Move the first row above the screen."""
        self._above.add_row(self._rows.popleft())
        self._above.add("\n")
        self._row = max(0, self._row - 1)
        self._saved = max(0, self._saved[0] - 1), self._saved[1]

    def _write(self, text: str) -> None:
        if not text:
            return
        row = self._rows[self._row]
        missing = self._column - row.length
        if missing > 0:
            blanks = min(missing, self._blanks)
            self._blanks -= blanks
            row.write(row.length, " " * blanks)
            self._column = row.length
        row.write(self._column, text)
        self._column += len(text)
