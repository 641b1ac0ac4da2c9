"""Code blocks in a supervisor's message."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Sequence
from os.path import commonprefix
from typing import Literal

import msgspec

from ..slices import SLICE, Steps, finish, join, text_slices

_MARK = re.compile(r"```|~~~")
_RUNS = {"`": re.compile(r"`+"), "~": re.compile(r"~+")}
_REPL = frozenset({"repl"})
_PYTHON = frozenset({"python", "py", "python3"})

# Bounds on what a bad message can cost: later fences tried for a block, and characters examined.
_MAX_LATER_FENCES = 8
_MAX_EXAMINED_CHARS = 200_000

_FENCES_A_SLICE = 1000

# Characters whose lines are dedented at once.
_DEDENTED = 1 << 14

# Characters that are parsed at once, in some 10 ms. Of longer code only the strings are found.
_MAX_PARSED_CHARS = 8_000

_TOKEN = re.compile(r"#|\"\"\"|'''|\"|'")
# A line ends a string in single quotes.
_ENDS = {
    mark: re.compile(rf"\\.|{mark}" + ("|\n" if len(mark) == 1 else ""), re.DOTALL)
    for mark in ('"""', "'''", '"', "'")
}
_BLANK_LINE = re.compile(r"^[ \t]+$", re.MULTILINE)
_INDENT = re.compile(r"^[ \t]*(?=[^ \t\n])", re.MULTILINE)


class _Fence(msgspec.Struct, frozen=True, gc=False):
    """A line that opens or closes a block."""

    # Of the line without its end, and of the next line.
    start: int
    end: int
    after: int
    is_indented: bool
    mark: str
    # The first word behind the mark.
    word: str


def code_blocks(message: str) -> list[str]:
    """Return the blocks marked ``repl``, in order; without any, those marked ``python``.

    A block ends at a fence of at least its length, or with the message.
    """
    return finish(find_code_blocks(message))


def find_code_blocks(message: str) -> Steps[list[str]]:
    """Return ``code_blocks``, in slices."""
    fences: list[_Fence] = []
    at = 0
    while (found := (yield from _next_mark(message, at))) >= 0:
        start = message.rfind("\n", 0, found) + 1
        newline = message.find("\n", found)
        fence = _fence(message, start, found, newline if newline >= 0 else len(message))
        if fence is not None:
            fences.append(fence)
        if newline < 0:
            break
        at = newline + 1
        yield
    blocks = yield from _blocks(message, fences, _REPL)
    blocks = blocks or (yield from _blocks(message, fences, _PYTHON))
    # Freed at once, 300,000 of them take 20 ms.
    while fences:
        del fences[-_FENCES_A_SLICE:]
        yield
    return blocks


def _next_mark(message: str, at: int) -> Steps[int]:
    while at < len(message):
        found = _MARK.search(message, at, at + SLICE)
        if found:
            return found.start()
        at += SLICE - 2
        yield
    return -1


def _fence(message: str, start: int, mark_at: int, newline: int) -> _Fence | None:
    # Nobody writes a fence of more than ``SLICE`` characters.
    if newline - start > SLICE or message[start:mark_at].strip(" \t"):
        return None
    end = newline - message.startswith("\r\n", newline - 1)
    run = _RUNS[message[mark_at]].match(message, mark_at, end)
    assert run is not None, "a mark was found here"
    info = message[run.end() : end]
    if "`" in info:
        return None
    word = info.split(None, 1)[0] if info.strip() else ""
    return _Fence(start, end, newline + 1, mark_at > start, run[0], word)


def _blocks(message: str, fences: Sequence[_Fence], languages: frozenset[str]) -> Steps[list[str]]:
    blocks: list[str] = []
    parser = _Parser()
    at = 0
    while at < len(fences):
        yield
        opening = fences[at]
        is_wanted = opening.word.lower() in languages
        first = yield from _next_closing(fences, at + 1, opening.mark)
        if first < 0:
            at = len(fences)
            code = (yield from _unclosed(message, opening, parser)) if is_wanted else ""
        elif is_wanted:
            code, closing = yield from _closed(message, fences, opening, first, parser)
            at = closing + 1
        else:
            code, at = "", first + 1
        if is_wanted and (yield from _has_text(code)):
            blocks.append((yield from dedent(code)) if opening.is_indented else code)
    return blocks


def _next_closing(fences: Sequence[_Fence], start: int, mark: str) -> Steps[int]:
    for number in range(start, len(fences)):
        fence = fences[number]
        if not fence.word and fence.mark.startswith(mark):
            return number
        if not number % _FENCES_A_SLICE:
            yield
    return -1


def _closed(
    message: str, fences: Sequence[_Fence], opening: _Fence, first: int, parser: _Parser
) -> Steps[tuple[str, int]]:
    # A fence inside a string ends no block: the code up to it does not parse, up to a later one it does.
    shortest = code = yield from _code(message, opening.after, fences[first].start)
    if opening.mark[0] == "`" and not _may_hold_a_line(shortest):
        return shortest, first
    number = first
    for _ in range(_MAX_LATER_FENCES + 1):
        if (yield from parser.accepts(code)):
            return code, number
        number = yield from _next_closing(fences, number + 1, opening.mark)
        if number < 0:
            break
        code = yield from _code(message, opening.after, fences[number].start)
    return shortest, first


def _may_hold_a_line(code: str) -> bool:
    # Whether a string of the code may go over several lines. Else a line of backticks is in none.
    return any(mark in code for mark in ('"""', "'''", "\\\n"))


def _unclosed(message: str, opening: _Fence, parser: _Parser) -> Steps[str]:
    code = yield from _code(message, opening.after, len(message) + 1)
    # Models put the closing fence at the end of the last line of code, too.
    if parser.has_room(code) and code.rstrip().endswith(opening.mark):
        without = code.rstrip().removesuffix(opening.mark)
        if not (yield from parser.accepts(code, without)) and (yield from parser.accepts(without)):
            return without
    return code


def _code(message: str, start: int, end: int) -> Steps[str]:
    """Return the lines from ``start`` to the one that begins at ``end``."""
    end -= 1 + message.startswith("\r\n", end - 2)
    code = message[start : max(start, end)]
    if "\r\n" not in code:
        return code
    pieces: list[str] = []
    at = 0
    while at < len(code):
        stop = at + SLICE
        # A line end stays together.
        stop += code.startswith("\r\n", stop - 1)
        pieces.append(code[at:stop].replace("\r\n", "\n"))
        at = stop
        yield
    return (yield from join(pieces))


def _has_text(code: str) -> Steps[bool]:
    for piece in text_slices(code):
        if not piece.isspace():
            return True
        yield
    return False


def dedent(code: str) -> Steps[str]:
    """Return ``textwrap.dedent`` of code, in slices."""
    if len(code) <= _DEDENTED:
        return textwrap.dedent(code)
    # As ``textwrap.dedent`` does, in pieces that end with a line.
    pieces: list[str] = []
    margin: str | None = None
    at = 0
    while at < len(code):
        newline = code.find("\n", at + _DEDENTED)
        stop = newline + 1 if newline >= 0 else len(code)
        piece = _BLANK_LINE.sub("", code[at:stop])
        indents = set(_INDENT.findall(piece))
        if indents:
            margin = commonprefix([*indents, *([] if margin is None else [margin])])  # noqa: RUF071 - no paths
        pieces.append(piece)
        at = stop
        yield
    for number, piece in enumerate(pieces if margin else []):
        pieces[number] = re.sub(f"(?m)^{margin}", "", piece)
        yield
    return (yield from join(pieces))


class _Parser:
    """Parses code, within a budget for the whole message."""

    def __init__(self) -> None:
        self._left = _MAX_EXAMINED_CHARS

    def has_room(self, code: str) -> bool:
        """Return whether the budget has room for this code."""
        return len(code) + 100 <= self._left

    def accepts(self, code: str, start: str | None = None) -> Steps[bool]:
        """Return whether code parses; of long code, whether its ``start`` ends outside of a string."""
        # It is only parsed. A model wrote it, and only the guest compiles it.
        is_left = self.has_room(code)
        self._left -= len(code) + 100
        if not is_left:
            # The budget is used up, so the first closing fence counts.
            return True
        if len(code) > _MAX_PARSED_CHARS:
            state = yield from _state_at_end(code if start is None else start)
            # What follows ``start`` is a fence, which only a comment may hold.
            return state != "string" if start is None else state == "comment"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ast.parse(textwrap.dedent(code))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
        return True


def _state_at_end(code: str) -> Steps[Literal["code", "comment", "string"]]:
    at = 0
    while found := _TOKEN.search(code, at):
        yield
        mark = found[0]
        if mark == "#":
            at = code.find("\n", found.end())
            if at < 0:
                return "comment"
            continue
        at = found.end()
        while ended := _ENDS[mark].search(code, at):
            at = ended.end()
            if not ended[0].startswith("\\"):
                break
        else:
            return "string"
    return "code"
