"""Code blocks in a supervisor's message."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from os.path import commonprefix
from typing import Literal

from ..slices import SLICE, Steps, finish, join, text_slices
from .fences import MARK, PYTHON, REPL, Fence, read_fence, without_special_tokens
from .parsing import end_of_string, is_parsed_fast, parsed

# Bounds on what a bad message can cost: later fences tried for a block, and characters examined.
_MAX_LATER_FENCES = 8
_MAX_EXAMINED_CHARS = 200_000

_FENCES_A_SLICE = 1000

# Characters whose lines are dedented at once.
_DEDENTED = 1 << 14

# Characters that are parsed at once. Of longer code only the strings are found.
_MAX_PARSED_CHARS = 8_000

_TOKEN = re.compile(r"#|\"\"\"|'''|\"|'")
# Possessive: else a long line of them takes 160 ms.
_QUOTE = re.compile(r"^[ \t]*+(?:> ?)++", re.MULTILINE)


def code_blocks(message: str, *, is_cut: bool = False) -> list[str]:
    """Return the blocks marked ``repl``, in order; without any, those marked ``python``.

    A block ends at a fence of at least its length, at the opening fence of another, or with the message.
    In a message that was cut off, the last block counts only if it is closed.
    """
    return finish(find_code_blocks(message, is_cut=is_cut))


def find_code_blocks(message: str, *, is_cut: bool = False) -> Steps[list[str]]:
    """Return ``code_blocks``, in slices."""
    fences: list[Fence] = []
    at = 0
    while (found := (yield from _next_mark(message, at))) >= 0:
        start = message.rfind("\n", 0, found) + 1
        newline = message.find("\n", found)
        fence = read_fence(message, start, found, newline if newline >= 0 else len(message))
        if fence is not None:
            fences.append(fence)
        if newline < 0:
            break
        at = newline + 1
        yield
    blocks = yield from _Blocks(message, fences, REPL, is_cut).find()
    if blocks is None:
        blocks = (yield from _Blocks(message, fences, PYTHON, is_cut).find()) or []
    # Freed at once, 300,000 of them take 20 ms.
    while fences:
        del fences[-_FENCES_A_SLICE:]
        yield
    return blocks


def _next_mark(message: str, at: int) -> Steps[int]:
    while at < len(message):
        found = MARK.search(message, at, at + SLICE)
        if found:
            return found.start()
        at += SLICE - 2
        yield
    return -1


class _Blocks:
    """Finds the blocks of some languages among the fences of a message."""

    def __init__(
        self, message: str, fences: Sequence[Fence], languages: re.Pattern[str], is_cut: bool
    ) -> None:
        self._message, self._fences, self._languages = message, fences, languages
        self._is_cut = is_cut
        self._parser = _Parser()

    def find(self) -> Steps[list[str] | None]:
        """Return the blocks; None if there is not even one that is cut off."""
        blocks: list[str] = []
        is_any = False
        at = 0
        while at < len(self._fences):
            yield
            opening = self._fences[at]
            is_wanted = self._languages.fullmatch(opening.word) is not None
            code: str | None
            if opening.inline is not None:
                code, at = opening.inline, at + 1
            elif is_wanted:
                code, at = yield from self._block(opening, at)
            else:
                code, at = "", (yield from self._end_of_other(opening, at + 1))
            if not is_wanted:
                continue
            is_any = is_any or code is None
            if code is not None and (yield from _has_text(code)):
                blocks.append(code)
        return blocks if blocks or is_any else None

    def _end_of_other(self, opening: Fence, start: int) -> Steps[int]:
        # A block of another language ends at its closing fence, or where a wanted block begins: then the
        # closing fence is missing, or this one was a second closing fence. Markdown may quote blocks.
        quotes = opening.word.lower() in ("markdown", "md")
        for number in range(start, len(self._fences)):
            fence = self._fences[number]
            if fence.mark.startswith(opening.mark):
                if fence.may_close:
                    return number + 1
                if not quotes and self._languages.fullmatch(fence.word):
                    return number
            if not number % _FENCES_A_SLICE:
                yield
        return len(self._fences)

    def _block(self, opening: Fence, at: int) -> Steps[tuple[str | None, int]]:
        """Return the code, None if it is cut off, and the number of the fence that follows."""
        closing = yield from self._end(opening, at + 1)
        if closing >= 0:
            fence = self._fences[closing]
            code = yield from self._code(opening, fence.start)
            return (yield from self._clean(code, opening)), closing + fence.may_close
        if self._is_cut:
            return None, len(self._fences)
        code = yield from self._unclosed(opening)
        return (yield from self._clean(code, opening)), len(self._fences)

    def _end(self, opening: Fence, start: int) -> Steps[int]:
        """Return the number of the fence that ends a block, or -1."""
        # A fence inside a string ends no block: the code up to it does not parse, up to a later one it does.
        first = -1
        number = start - 1
        for _ in range(_MAX_LATER_FENCES + 1):
            number = yield from self._next(number + 1, opening.mark)
            if number < 0:
                break
            code = yield from self._code(opening, self._fences[number].start)
            if opening.mark[0] == "`" and first < 0 and not _may_hold_a_line(code):
                return number
            if self._fences[number].may_close:
                if (yield from self._parser.accepts(code)):
                    return number
                first = number if first < 0 else first
            elif not (yield from self._parser.ends_in_string(code)):
                # The closing fence of this block is missing, or its code is no Python.
                return number if first < 0 else first
        # What follows may be cut off.
        return -1 if self._is_cut and number < 0 else first

    def _next(self, start: int, mark: str) -> Steps[int]:
        for number in range(start, len(self._fences)):
            fence = self._fences[number]
            if (fence.may_close or fence.word) and fence.mark.startswith(mark):
                return number
            if not number % _FENCES_A_SLICE:
                yield
        return -1

    def _unclosed(self, opening: Fence) -> Steps[str]:
        code = without_special_tokens((yield from self._code(opening, len(self._message) + 1)))
        # Models put the closing fence at the end of the last line of code, too.
        if self._parser.has_room(code) and code.rstrip().endswith(opening.mark):
            without = code.rstrip().removesuffix(opening.mark)
            is_code = yield from self._parser.accepts(code, without)
            if not is_code and (yield from self._parser.accepts(without)):
                return without
        return code

    def _code(self, opening: Fence, end: int) -> Steps[str]:
        """Return the lines behind a fence, to the one that begins at ``end``."""
        code = yield from _lines(self._message, opening.after, end)
        yield
        return (yield from _unquote(code)) if opening.is_quoted else code

    def _clean(self, code: str, opening: Fence) -> Steps[str]:
        code = without_special_tokens(code)
        yield
        return (yield from dedent(code)) if opening.is_indented else code


def _may_hold_a_line(code: str) -> bool:
    # Whether a string of the code may go over several lines. Else a line of backticks is in none.
    return any(mark in code for mark in ('"""', "'''", "\\\n"))


def _lines(message: str, start: int, end: int) -> Steps[str]:
    """Return the lines from ``start`` to the one that begins at ``end``."""
    end -= 1 + message.startswith("\r\n", end - 2)
    code = message[start : max(start, end)]
    yield
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


def _unquote(code: str) -> Steps[str]:
    # The lines of a block quote.
    pieces: list[str] = []
    at = 0
    while at < len(code):
        newline = code.find("\n", at + _DEDENTED)
        stop = newline + 1 if newline >= 0 else len(code)
        # Nobody quotes a line of this length.
        pieces.append(_QUOTE.sub("", code[at:stop]) if stop - at <= SLICE else code[at:stop])
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
    # As ``textwrap.dedent`` does, in pieces that end with a line, and without its patterns: a line of 2 M
    # spaces takes them 110 ms.
    pieces: list[str] = []
    indents: set[str] = set()
    at = 0
    while at < len(code):
        newline = code.find("\n", at + _DEDENTED)
        stop = newline + 1 if newline >= 0 else len(code)
        lines = code[at:stop].split("\n")
        yield
        lines = [line if len(line) > SLICE or line.lstrip(" \t") else "" for line in lines]
        yield
        # Nobody indents by more than the first characters of a line.
        heads = [line[:_DEDENTED] for line in lines if line]
        indents.update(head[: len(head) - len(head.lstrip(" \t"))] for head in heads)
        if indents:
            indents = {commonprefix([*indents])}  # noqa: RUF071 - no paths
        pieces.append("\n".join(lines))
        at = stop
        yield
    margin = indents.pop() if indents else ""
    for number, piece in enumerate(pieces if margin else []):
        pieces[number] = "\n".join(line.removeprefix(margin) for line in piece.split("\n"))
        yield
    return (yield from join(pieces))


class _Parser:
    """Parses code, within a budget for the whole message."""

    def __init__(self) -> None:
        self._left = _MAX_EXAMINED_CHARS

    def has_room(self, code: str) -> bool:
        """Return whether the budget has room for this code."""
        return len(code) + 100 <= self._left

    def ends_in_string(self, code: str) -> Steps[bool]:
        """Return whether code ends inside a string."""
        is_left = self.has_room(code)
        self._left -= len(code) + 100
        return is_left and (yield from _state_at_end(code)) == "string"

    def accepts(self, code: str, start: str | None = None) -> Steps[bool]:
        """Return whether code parses; of long code, whether its ``start`` ends outside of a string."""
        # It is only parsed. A model wrote it, and only the guest compiles it.
        is_left = self.has_room(code)
        self._left -= len(code) + 100
        if not is_left:
            # The budget is used up, so the first closing fence counts.
            return True
        if len(code) > _MAX_PARSED_CHARS or not (yield from is_parsed_fast(code)):
            state = yield from _state_at_end(code if start is None else start)
            # What follows ``start`` is a fence, which only a comment may hold.
            return state != "string" if start is None else state == "comment"
        return parsed(textwrap.dedent(code)) is not None


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
        at = yield from end_of_string(code, found.end(), mark)
        if at < 0:
            return "string"
    return "code"
