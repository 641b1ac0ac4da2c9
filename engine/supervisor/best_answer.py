"""Code in a supervisor's best answer, which should be plain text."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence

from ..slices import Steps, finish
from .blocks import dedent, find_code_blocks
from .parsing import is_parsed_fast, parsed

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})([^`]*)")
# Only code of ours calls them, whatever fence it is in.
_OURS = frozenset({"FINAL", "worker", "worker_batch"})
# Longer texts are no code of a best answer.
_MAX_CHARS = 200_000
_LINES_A_STEP = 500
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
    if len(text) > _MAX_CHARS:
        return []
    bare = _bare_fence(text)
    if bare is not None and _does_something((yield from _statements(bare))):
        # Answers are put into a fence, too.
        return [bare]
    fenced: list[str] = []
    is_ours = False
    for code in (yield from _fenced(text)):
        statements = yield from _statements(code)
        if statements:
            fenced.append(code)
            is_ours = is_ours or _calls_ours(statements)
    if is_ours:
        return fenced
    last = text.rfind("\nFINAL(") + 1
    for code in (text, text[last:]):
        # Parsing is slow, and few texts have such a word.
        if any(name in code for name in _OURS) and _calls_ours((yield from _statements(code))):
            return [code]
    return []


def _bare_fence(text: str) -> str | None:
    # The whole message is one fence without a language.
    first, last = text.find("\n"), text.rfind("\n")
    opening = text[: max(0, first)].rstrip(" \t")
    is_fence = len(opening) >= 3 and opening in ("`" * len(opening), "~" * len(opening))
    return text[first + 1 : last] if is_fence and first < last and text[last + 1 :] == opening else None


def _fenced(text: str) -> Steps[list[str]]:
    blocks: list[str] = []
    mark: str | None = None
    start = at = number = 0
    while at < len(text):
        newline = text.find("\n", at)
        end = newline if newline >= 0 else len(text)
        fence = _FENCE.fullmatch(text, at, end)
        if fence and mark is None:
            mark, start = fence[1], end + 1
        elif fence and mark is not None and fence[1].startswith(mark) and not fence[2].strip():
            blocks.append((yield from dedent(text[start : max(start, at - 1)])))
            mark = None
        at = end + 1
        number += 1
        if not number % _LINES_A_STEP:
            yield
    return blocks


def literal_final(code: str) -> str | None:
    """Return the literal that a block passes to FINAL, or None."""
    return finish(find_literal_final(code))


def find_literal_final(code: str) -> Steps[str | None]:
    """Return ``literal_final``, in slices."""
    call = next(filter(None, map(_final_call, (yield from _statements(code)))), None)
    if call is None:
        return None
    try:
        answer = ast.literal_eval(call.args[0])
        return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False, allow_nan=False)
    # It is computed, or no plain data.
    except (ValueError, TypeError, RecursionError, MemoryError):
        return None


def _statements(code: str) -> Steps[list[ast.stmt]]:
    yield
    if len(code) > _MAX_CHARS or not (yield from is_parsed_fast(code)):
        return []
    yield
    statements = parsed(code)
    yield
    return statements or []


def _calls_ours(statements: Sequence[ast.stmt]) -> bool:
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _OURS
        for statement in statements
        for node in ast.walk(statement)
    )


def _does_something(statements: Sequence[ast.stmt]) -> bool:
    return any(isinstance(node, _DOES_SOMETHING) for statement in statements for node in ast.walk(statement))


def _final_call(statement: ast.stmt) -> ast.Call | None:
    match statement:
        case ast.Expr(ast.Call(ast.Name("FINAL"), [_]) as call):
            return call
        case _:
            return None
