"""Code blocks in a supervisor's message."""

from __future__ import annotations

import ast
import itertools
import re
import textwrap
import warnings

_FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$")
_REPL = frozenset({"repl"})
_PYTHON = frozenset({"python", "py", "python3"})

# Bounds on what a bad message can cost: later fences tried for a block, and characters parsed.
_MAX_LATER_FENCES = 8
_MAX_PARSED_CHARS = 200_000


def code_blocks(message: str) -> list[str]:
    """Return the blocks marked ``repl``, in order; without any, those marked ``python``.

    A block ends at a fence of at least its length, or with the message.
    """
    lines = message.replace("\r\n", "\n").split("\n")
    return _blocks(lines, _REPL) or _blocks(lines, _PYTHON)


def _blocks(lines: list[str], languages: frozenset[str]) -> list[str]:
    blocks: list[str] = []
    parser = _Parser()
    at = 0
    while at < len(lines):
        opening = _FENCE.match(lines[at])
        if opening is None:
            at += 1
            continue
        words = opening["info"].split()
        wanted = bool(words) and words[0].lower() in languages
        code, at = _read_block(lines, at + 1, opening["fence"], parser if wanted else None)
        if wanted and code.strip():
            blocks.append(textwrap.dedent(code) if opening["indent"] else code)
    return blocks


def _read_block(lines: list[str], start: int, fence: str, parser: _Parser | None) -> tuple[str, int]:
    closings = (
        number
        for number in range(start, len(lines))
        if (match := _FENCE.match(lines[number])) and _closes(match, fence)
    )
    first = next(closings, None)
    if first is not None:
        # A fence inside a string ends no block: the code up to it does not parse, up to a later one it does.
        if parser is not None:
            for number in (first, *itertools.islice(closings, _MAX_LATER_FENCES)):
                code = "\n".join(lines[start:number])
                if parser.accepts(code):
                    return code, number + 1
        return "\n".join(lines[start:first]), first + 1
    code = "\n".join(lines[start:])
    # Models put the closing fence at the end of the last line of code, too.
    stripped = code.rstrip().removesuffix(fence)
    if (
        parser is not None
        and stripped != code.rstrip()
        and not parser.accepts(code)
        and parser.accepts(stripped)
    ):
        return stripped, len(lines)
    return code, len(lines)


def _closes(match: re.Match[str], fence: str) -> bool:
    return match["fence"].startswith(fence) and not match["info"].strip()


class _Parser:
    """Parses code, within a budget for the whole message."""

    def __init__(self) -> None:
        self._left = _MAX_PARSED_CHARS

    def accepts(self, code: str) -> bool:
        # It is only parsed. A model wrote it, and only the guest compiles it.
        self._left -= len(code) + 100
        if self._left < 0:
            # The budget is used up, so the first closing fence counts.
            return True
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ast.parse(textwrap.dedent(code))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
        return True
