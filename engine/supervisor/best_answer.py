"""Code in a supervisor's best answer, which should be plain text."""

from __future__ import annotations

import ast
import json
import re
import textwrap
import warnings
from collections.abc import Iterator

from ..slices import Steps, finish
from .blocks import find_code_blocks

# The whole message is one fence without a language.
_BARE_FENCE = re.compile(r"(`{3,}|~{3,})[ \t]*\n(?P<code>.*)\n\1[ \t]*", re.DOTALL)
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})([^`]*)")
# Only code of ours calls them, whatever fence it is in.
_OURS = frozenset({"FINAL", "worker", "worker_batch"})
# Parsed at once: 8,000 characters of code take 10 ms, and long strings next to nothing.
_MAX_PARSED_CHARS = 200_000
_MAX_CODE_CHARS = 8_000
_MAX_STRINGS = 2_000
_COMMENT_OR_STRING = re.compile(
    r"""#[^\n]*|[fF]?[rR]?(?:'''(?:[^\\]|\\.)*?'''|\"\"\"(?:[^\\]|\\.)*?\"\"\"|"""
    r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")""",
    re.DOTALL,
)
_DOES_SOMETHING = (ast.Call, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Import, ast.ImportFrom)


def answer_blocks(text: str) -> list[str]:
    """Return the code in a best answer; empty if it is plain text.

    Besides blocks it is a message that is nothing but code, or that has a call of FINAL or of a worker in a
    fence of any language, or ends with one of FINAL.
    """
    return finish(find_answer_blocks(text))


def find_answer_blocks(text: str) -> Steps[list[str]]:
    """Return ``answer_blocks``, in slices."""
    blocks = yield from find_code_blocks(text)
    if blocks:
        return blocks
    text = text.strip()
    if len(text) > _MAX_PARSED_CHARS:
        return []
    fence = _BARE_FENCE.fullmatch(text)
    if fence is not None and any(map(_does_something, _statements(fence["code"]))):
        # Answers are put into a fence, too.
        return [fence["code"]]
    fenced: list[str] = []
    is_ours = False
    for code in _fenced(text):
        yield
        if _statements(code):
            fenced.append(code)
            is_ours = is_ours or _calls_ours(code)
    if is_ours:
        return fenced
    last = text.rfind("\nFINAL(") + 1
    for code in (text, text[last:]):
        yield
        if _calls_ours(code):
            return [code]
    return []


def _fenced(text: str) -> Iterator[str]:
    mark: str | None = None
    lines: list[str] = []
    for line in text.splitlines():
        fence = _FENCE.fullmatch(line)
        if mark is None:
            mark, lines = (fence[1] if fence else None), []
        elif fence and fence[1].startswith(mark) and not fence[2].strip():
            yield textwrap.dedent("\n".join(lines))
            mark = None
        else:
            lines.append(line)


def _calls_ours(code: str) -> bool:
    # Parsing is slow, and few texts have such a word.
    return any(name in code for name in _OURS) and any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _OURS
        for statement in _statements(code)
        for node in ast.walk(statement)
    )


def literal_final(code: str) -> str | None:
    """Return the answer that a block gives to FINAL in so many words, or None."""
    call = next(filter(None, map(_final_call, _statements(code))), None)
    if call is None:
        return None
    try:
        answer = ast.literal_eval(call.args[0])
        return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    # It is computed, or no plain data.
    except (ValueError, TypeError, RecursionError, MemoryError):
        return None


def _statements(code: str) -> list[ast.stmt]:
    if len(code) > _MAX_PARSED_CHARS or (len(code) > _MAX_CODE_CHARS and _code_chars(code) > _MAX_CODE_CHARS):
        return []
    # Only parsed: a model wrote it.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _code_chars(code: str) -> int:
    size = len(code)
    for number, found in enumerate(_COMMENT_OR_STRING.finditer(code)):
        # Many short strings take as long as code.
        if number > _MAX_STRINGS:
            return len(code)
        # An f-string holds code.
        if found[0][0] not in "#fF":
            size -= len(found[0])
    return size


def _does_something(statement: ast.stmt) -> bool:
    return any(isinstance(node, _DOES_SOMETHING) for node in ast.walk(statement))


def _final_call(statement: ast.stmt) -> ast.Call | None:
    match statement:
        case ast.Expr(ast.Call(ast.Name("FINAL"), [_]) as call):
            return call
        case _:
            return None
