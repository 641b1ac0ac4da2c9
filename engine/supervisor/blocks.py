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
_EXTENSIONS = 8
"""So many later fences are tried as the end of a block that does not parse."""
_PARSED_CHARS = 200_000


def code_blocks(message: str) -> list[str]:
    """The blocks to execute, in order: those marked ``repl``, or, where there is none, those marked ``python``.

    A fence is a line of at least three backticks or tildes; it ends at a line of at least as many of the
    same, or with the message. A closing fence may also be the text of a string: where the code up to it is
    no Python, and the code up to a later one is, the block goes on to that one.
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
        code, at = _body(lines, at + 1, opening["fence"], parser if wanted else None)
        if wanted and code.strip():
            blocks.append(textwrap.dedent(code) if opening["indent"] else code)
    return blocks


def _body(lines: list[str], start: int, fence: str, parser: _Parser | None) -> tuple[str, int]:
    """The code after an opening fence, and the line after its closing one. Without a parser, the first closes."""
    closings = (
        number
        for number in range(start, len(lines))
        if (match := _FENCE.match(lines[number])) and _closes(match, fence)
    )
    first = next(closings, None)
    if first is not None:
        if parser is not None:
            for number in (first, *itertools.islice(closings, _EXTENSIONS)):
                code = "\n".join(lines[start:number])
                if parser.accepts(code):
                    return code, number + 1
        return "\n".join(lines[start:first]), first + 1
    code = "\n".join(lines[start:])
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
    """Says whether code parses, within a budget for the whole message: it may be a model gone astray."""

    def __init__(self) -> None:
        self._left = _PARSED_CHARS

    def accepts(self, code: str) -> bool:
        """Only parses: the text is a model's, and compiling is the guest's business."""
        self._left -= len(code) + 100
        if self._left < 0:
            return True  # the budget is used up: the first closing fence closes
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ast.parse(textwrap.dedent(code))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
        return True
