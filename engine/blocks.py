"""Code blocks in a supervisor's message."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings

_FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`\r\n]*)$")
_REPL = frozenset({"repl"})
_PYTHON = frozenset({"python", "py", "python3"})


def code_blocks(message: str) -> list[str]:
    """The blocks to execute, in order: those marked ``repl``, or, where there is none, those marked ``python``.

    A fence is a line of at least three backticks or tildes; it ends at a line of at least as many of the
    same, or with the message. A closing fence may also be the text of a string: where the code up to it is
    no Python, and the code up to a later one is, the block goes on to that one.
    """
    lines = message.splitlines()
    return _blocks(lines, _REPL) or _blocks(lines, _PYTHON)


def _blocks(lines: list[str], languages: frozenset[str]) -> list[str]:
    blocks: list[str] = []
    at = 0
    while at < len(lines):
        opening = _FENCE.match(lines[at])
        if opening is None:
            at += 1
            continue
        code, after = _body(lines, at + 1, opening["fence"])
        words = opening["info"].split()
        if words and words[0].lower() in languages:
            if opening["indent"]:
                code = textwrap.dedent(code)
            if code.strip():
                blocks.append(code)
        at = after
    return blocks


def _body(lines: list[str], start: int, fence: str) -> tuple[str, int]:
    """The code after an opening fence, and the line after its closing one."""
    closings = [
        number
        for number in range(start, len(lines))
        if (match := _FENCE.match(lines[number])) and _closes(match, fence)
    ]
    for number in closings:
        code = "\n".join(lines[start:number])
        if _is_python(code):
            return code, number + 1
    if closings:
        return "\n".join(lines[start : closings[0]]), closings[0] + 1
    code = "\n".join(lines[start:])
    stripped = code.rstrip().removesuffix(fence)
    return (stripped if not _is_python(code) and _is_python(stripped) else code), len(lines)


def _closes(match: re.Match[str], fence: str) -> bool:
    return match["fence"].startswith(fence) and not match["info"].strip()


def _is_python(code: str) -> bool:
    """Whether it parses. Only parses: the text is a model's, and compiling is the guest's business."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(textwrap.dedent(code))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
