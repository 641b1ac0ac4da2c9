"""Code in a supervisor's best answer, which should be plain text."""

from __future__ import annotations

import ast
import json
import re
import warnings

from ..slices import Steps, finish
from .blocks import find_code_blocks

# The whole message is one fence without a language.
_BARE_FENCE = re.compile(r"(`{3,}|~{3,})[ \t]*\n(?P<code>.*)\n\1[ \t]*", re.DOTALL)
_MAX_PARSED_CHARS = 200_000
_DOES_SOMETHING = (ast.Call, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Import, ast.ImportFrom)


def answer_blocks(text: str) -> list[str]:
    """Return the code in a best answer; empty if it is plain text.

    Besides blocks it is a message that is nothing but code: one fence without a language, or a call of FINAL.
    """
    return finish(find_answer_blocks(text))


def find_answer_blocks(text: str) -> Steps[list[str]]:
    """Return ``answer_blocks``, in slices."""
    blocks = yield from find_code_blocks(text)
    if blocks:
        return blocks
    text = text.strip()
    fence = _BARE_FENCE.fullmatch(text)
    if fence is not None:
        # Answers are put into a fence, too.
        return [fence["code"]] if any(map(_does_something, _statements(fence["code"]))) else []
    return [text] if any(map(_final_call, _statements(text))) else []


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
    if len(code) > _MAX_PARSED_CHARS:
        return []
    # Only parsed: a model wrote it.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _does_something(statement: ast.stmt) -> bool:
    return any(isinstance(node, _DOES_SOMETHING) for node in ast.walk(statement))


def _final_call(statement: ast.stmt) -> ast.Call | None:
    match statement:
        case ast.Expr(ast.Call(ast.Name("FINAL"), [_]) as call):
            return call
        case _:
            return None
