"""Take a model's thoughts out of its text: thoughts are no message, and code in them is not executed.

README.md has the rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .slices import Steps, finish, in_slices
from .thought_tags import (
    CANDIDATE,
    CLOSING,
    LONGEST_MARK,
    MARK,
    OPENING,
    Mark,
    closes_only_thoughts,
    mark_of,
    may_begin_tag,
    may_have_thoughts,
    unwrap_answer,
)

# Characters that are searched in one step, 1 ms.
_WINDOW = 1 << 16
_CANDIDATES_AT_ONCE = 500
# A text with more tags and fences than these is read up to them.
_MAX_MARKS = 4_000
# Kinds of tags that are opened within a message and never closed.
_MAX_UNCLOSED = 8

_QUOTES = {"'": "'", '"': '"', "`": "`", "(": ")", "\u201c": "\u201d", "\u2018": "\u2019", "\u00ab": "\u00bb"}
_SPACE = " \t\r\n\ufeff\u200b\u200c\u200d\u2060"


class SplitText(NamedTuple):
    """A model's text without its thoughts, and these."""

    text: str
    thoughts: str


async def find_thoughts(text: str, *, has_reasoning: bool) -> SplitText | None:
    """Return a text without its thoughts, and these; None if it has none."""
    if not may_have_thoughts(text):
        return None
    steps = split_thoughts(text, has_reasoning=has_reasoning)
    split = finish(steps) if len(text) <= _WINDOW // 8 else await in_slices(steps)
    return None if split.text == text else split


def split_thoughts(text: str, *, has_reasoning: bool = False) -> Steps[SplitText]:
    """Split a text. If thoughts came apart already, a closing tag alone says nothing."""
    if text.startswith("analysis") and (final := text.find("assistantfinal")) > 0:
        # gpt-oss, where the decoder has dropped the special tokens.
        return SplitText(text[final + 14 :], text[8:final].strip())
    marks = yield from _marks(text)
    reader = _Reader(text, marks)
    reader.take_leading()
    if not reader.families and not has_reasoning:
        reader.take_unopened()
    reader.take_later()
    return reader.result()


def _marks(text: str) -> Steps[list[Mark]]:
    marks: list[Mark] = []
    # Some opening tags begin with a word, and count only here.
    lead = OPENING.match(text, _first_visible(text))
    if lead is not None:
        marks.append(mark_of(lead))
    position = marks[0].end if marks else 0
    seen = 0
    while position < len(text):
        end = position + _WINDOW
        for candidate in CANDIDATE.finditer(text, position, end + 1):
            seen += 1
            if not seen % _CANDIDATES_AT_ONCE:
                yield
            if not position <= candidate.start() < end:
                continue
            found = MARK.match(text, candidate.start())
            if found is None or (found["fence"] and not _begins_line(text, found.start())):
                continue
            marks.append(mark_of(found))
            position = found.end()
            if len(marks) == _MAX_MARKS:
                return marks
        position = max(position, end)
        yield
    return marks


def _first_visible(text: str) -> int:
    # One step of 100,000 spaces takes a millisecond, and no model begins so.
    head = text[:_WINDOW]
    return len(head) - len(head.lstrip(_SPACE))


class _Reader:
    def __init__(self, text: str, marks: list[Mark]) -> None:
        self._text = text
        self._marks = marks
        self._next = 0
        self._position = 0
        self._kept: list[str] = []
        self._thoughts: list[str] = []
        # Of the thoughts found so far. A model that thinks in tags may do so again in one message.
        self.families = set[str]()
        # Whether the fence after a mark is one that can only close.
        self._closes_next = [False] * len(marks)
        closes = False
        for number in range(len(marks) - 1, -1, -1):
            self._closes_next[number] = closes
            if not marks[number].family:
                closes = marks[number].is_bare

    def result(self) -> SplitText:
        rest = self._text[self._position :]
        text = "".join([*self._kept, rest])
        if self.families and not self._kept:
            text = unwrap_answer(_without_blank_lines(text))
        elif not self._kept:
            text = unwrap_answer(text) if text.lstrip().startswith("<|") else text
        return SplitText(text, "\n\n".join(filter(None, self._thoughts)))

    def take_leading(self) -> None:
        """Take the thoughts that begin the text, closed or not."""
        while (number := self._opening_at(self._position)) is not None:
            self._take(number, self._find_closing(number))

    def take_unopened(self) -> None:
        """Take what comes before a closing tag whose opening one a chat template has put into the prompt."""
        is_open, opened = False, set[str]()
        for number, mark in enumerate(self._marks):
            if not mark.family:
                is_open = not mark.is_bare if is_open else True
                continue
            if self._is_mention(number, is_open):
                continue
            if mark.is_opening:
                opened.add(mark.family)
            elif mark.family not in opened and closes_only_thoughts(mark.family) and self._is_boundary(mark):
                self._add_thoughts(mark.family, 0, mark.start)
                self._move_behind(number)
                self.take_leading()
                return

    def take_later(self) -> None:
        """Take blocks of thoughts within the message.

        Only where the model has begun with thoughts in such tags, or the block has code. A text may be about
        tags.
        """
        unclosed = set[str]()
        is_open = False
        number = self._next
        while number < len(self._marks):
            mark = self._marks[number]
            number += 1
            if not mark.family:
                is_open = not mark.is_bare if is_open else True
                continue
            if len(unclosed) == _MAX_UNCLOSED:
                return
            if not mark.is_opening or mark.family in unclosed or self._is_mention(number - 1, is_open):
                continue
            if not _begins_line(self._text, mark.start):
                continue
            closing = self._find_closing(number - 1)
            has_code = any(not each.family for each in self._marks[number:closing])
            if closing is None:
                unclosed.add(mark.family)
                is_thought = has_code and _ends_line(self._text, mark.end)
            else:
                is_thought = has_code or mark.family in self.families
            if is_thought:
                self._kept.append(self._text[self._position : mark.start])
                self._take(number - 1, closing)
            if closing is not None:
                number, is_open = closing + 1, False

    def _opening_at(self, position: int) -> int | None:
        head = self._text[position : position + _WINDOW]
        position += len(head) - len(head.lstrip(_SPACE))
        number = self._next
        while number < len(self._marks) and self._marks[number].start < position:
            number += 1
        if number < len(self._marks) and self._marks[number].start == position:
            return number if self._marks[number].is_opening else None
        return None

    def _find_closing(self, opening: int) -> int | None:
        family, is_open, second_best = self._marks[opening].family, False, None
        for number in range(opening + 1, len(self._marks)):
            mark = self._marks[number]
            if not mark.family:
                is_open = not mark.is_bare if is_open else True
            elif not mark.is_opening and mark.family == family:
                if not self._is_mention(number, is_open):
                    return number
                is_alone = _begins_line(self._text, mark.start) and _ends_line(self._text, mark.end)
                second_best = number if second_best is None and is_alone else second_best
        return second_best

    def _take(self, opening: int, closing: int | None) -> None:
        mark = self._marks[opening]
        if closing is None:
            self._add_thoughts(mark.family, mark.end, len(self._text))
            self._position, self._next = len(self._text), len(self._marks)
        else:
            self._add_thoughts(mark.family, mark.end, self._marks[closing].start)
            self._move_behind(closing)

    def _move_behind(self, number: int) -> None:
        self._position, self._next = self._marks[number].end, number + 1

    def _add_thoughts(self, family: str, start: int, end: int) -> None:
        self.families.add(family)
        self._thoughts.append(self._text[start:end].strip())

    def _is_mention(self, number: int, is_open: bool) -> bool:
        """Return whether a tag is quoted, or stands in a fence that is closed after it."""
        mark = self._marks[number]
        return (is_open and self._closes_next[number]) or self._is_quoted(mark)

    def _is_quoted(self, mark: Mark) -> bool:
        before, after = self._text[max(0, mark.start - 2) : mark.start], self._text[mark.end : mark.end + 1]
        if not before or _QUOTES.get(before[-1]) != after:
            return False
        # "yes"</think>"yes": the first quote closes one.
        return len(before) == 1 or not (before[0].isalnum() or before[0] in ".!?,;")

    def _is_boundary(self, mark: Mark) -> bool:
        """Return whether a closing tag alone ends thoughts, and is no word of a sentence."""
        if _begins_line(self._text, mark.start) or _ends_line(self._text, mark.end):
            return True
        after = self._text[mark.end : mark.end + 2]
        if after[0] in _QUOTES.values() and not after[1:].isalnum():
            return False
        return self._text[mark.start - 1] not in " \t"


def _begins_line(text: str, position: int) -> bool:
    """Return whether only spaces come before this on its line."""
    start = max(0, position - 16)
    before = text[start:position].rstrip(" \t\r\ufeff\u200b")
    return before.endswith("\n") or (not before and start == 0)


def _ends_line(text: str, position: int) -> bool:
    after = text[position : position + 16].lstrip(" \t\r")
    return after.startswith("\n") or (not after and position + 16 >= len(text))


def _without_blank_lines(text: str) -> str:
    # The first line keeps its indentation, which may be that of code.
    lead = len(text) - len(text.lstrip())
    return text[text.rfind("\n", 0, lead) + 1 :] if lead < len(text) else ""


class MessageStream:
    """Passes on the text of a stream without the thoughts that begin it.

    Thoughts without an opening tag are passed on, too: their closing tag comes too late.
    """

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self._on_text = on_text
        self._held = ""
        self._family = ""
        self._is_message = False

    def add(self, piece: str) -> None:
        """Take a piece of the reply."""
        if self._is_message:
            self._on_text(piece)
            return
        self._held += piece
        while not self._is_message and self._read():
            pass

    def finish(self) -> None:
        """Pass on what was held back, if it is no thought."""
        if not self._is_message and not self._family and self._held.strip():
            self._pass_on()

    def _read(self) -> bool:
        """Read what is held; return whether to read on."""
        if self._family:
            for closing in CLOSING.finditer(self._held):
                if mark_of(closing).family == self._family:
                    self._held, self._family = self._held[closing.end() :], ""
                    return True
            # The closing tag may lie across two pieces.
            self._held = self._held[-LONGEST_MARK:]
            return False
        start = self._held.lstrip(_SPACE)
        found = OPENING.match(start)
        # A longer one may follow: Gemma names its channel.
        if found is not None and not may_begin_tag(start):
            self._family, self._held = mark_of(found).family, start[found.end() :]
            return True
        if not may_begin_tag(start):
            self._pass_on()
        return False

    def _pass_on(self) -> None:
        self._is_message = True
        self._on_text(self._held)
        self._held = ""
