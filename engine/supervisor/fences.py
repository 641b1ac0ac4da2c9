"""Fences: the lines that open and close code blocks, as models write them."""

from __future__ import annotations

import re

import msgspec

from ..slices import SLICE

MARK = re.compile(r"```|~~~")
_RUNS = {"`": re.compile(r"`+"), "~": re.compile(r"~+")}

# A fence may stand in a list item or a block quote. Some endpoints put an invisible character before it.
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
_BEFORE_CLOSING = re.compile(rf"[ \t>{_INVISIBLE}]*")
_BEFORE_OPENING = re.compile(rf"(?:[ \t>{_INVISIBLE}]|(?:[-*+]|\d{{1,9}}[.)])[ \t])*")

# Special tokens that some servers leave in the text: <|im_end|>, </s>, <end_of_turn>, [/INST].
_SPECIAL = r"(?:<[|\uff5c/]?[A-Za-z][\w|\uff5c\u2581./:-]{0,60}>|\[/?[A-Z_]{2,20}\])"
_ONLY_SPECIAL = re.compile(rf"(?:[ \t]*{_SPECIAL})+[ \t]*")
# At the end of a line of code only these, since ``a<b>`` may end a comment.
_KNOWN = (
    r"(?:<[|\uff5c][\w\u2581-]{1,60}[|\uff5c]>|</?s>|<eos>|<end_of_turn>|<end_code>|</code>|</?tool_code>"
    r"|<end_of_utterance>|\[/INST\])"
)
_KNOWN_AT_END = re.compile(rf"(?:\s*{_KNOWN})+\s*\Z")
_END_CHARS = 400

# Also {python}, {.python .cell} and python3.11.
_WORD = re.compile(r"[ \t]*\{?[ \t.]*([A-Za-z_][\w.+#-]*)")
REPL = re.compile(r"repl", re.IGNORECASE)
PYTHON = re.compile(r"(?:(?:ipython|python|py)[\d.]*|tool_code|code-cell)", re.IGNORECASE)


class Fence(msgspec.Struct, frozen=True, gc=False):
    """A line that opens or closes a block."""

    # Of the line without its end, and of the next line.
    start: int
    end: int
    after: int
    is_indented: bool
    is_quoted: bool
    mark: str
    # The first word behind the mark; empty for a fence that may close a block.
    word: str
    may_close: bool
    # The code of a block that is one line; else None.
    inline: str | None = None


def read_fence(message: str, start: int, mark_at: int, newline: int) -> Fence | None:
    """Return the fence in the line from ``start`` to ``newline``, or None."""
    # Nobody writes a fence of more than ``SLICE`` characters.
    if newline - start > SLICE or not _BEFORE_OPENING.fullmatch(message, start, mark_at):
        return None
    end = newline - message.startswith("\r\n", newline - 1)
    run = _RUNS[message[mark_at]].match(message, mark_at, end)
    assert run is not None, "a mark was found here"
    info = message[run.end() : end].strip(_INVISIBLE + " \t")
    may_close = not info or _ONLY_SPECIAL.fullmatch(info) is not None
    found = None if may_close else _WORD.match(info)
    word = found[1] if found else ""
    inline = None
    if run[0][0] in info and not may_close:
        inline = _inline(info, run[0], found.end() if found else 0)
        # A tilde may stand in the words behind the language.
        if inline is None and run[0][0] == "`":
            return None
    return Fence(
        start,
        end,
        newline + 1,
        mark_at > start,
        ">" in message[start:mark_at],
        run[0],
        word,
        may_close and _BEFORE_CLOSING.fullmatch(message, start, mark_at) is not None,
        inline,
    )


def _inline(info: str, mark: str, start: int) -> str | None:
    # ```repl print(1)```
    code, closing, rest = info[start:].partition(mark)
    is_closed = closing and (not rest.strip() or _ONLY_SPECIAL.fullmatch(rest))
    return code.strip() if is_closed and code[:1] in (" ", "\t") and code.strip() else None


def without_special_tokens(code: str) -> str:
    """Return code without special tokens at its end."""
    found = _KNOWN_AT_END.search(code, max(0, len(code) - _END_CHARS))
    return code[: found.start()] if found else code
