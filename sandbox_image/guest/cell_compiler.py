"""A block's source, compiled in two: what is run, and the expression at its end whose value is shown."""

from __future__ import annotations
import __future__

import ast
import re
from types import CodeType
from typing import cast

_FUTURE = __future__.annotations.compiler_flag
_STATEMENT = re.compile(r"(?!(?:elif|else|except|finally)\b)[^\s#)\]}]")


def split(source: str, name: str) -> tuple[list[CodeType], CodeType | None]:
    """What to execute in order, and then, if the last statement is an expression without ``;``, what to evaluate.

    Most blocks need no syntax tree, which takes longer than compiling: they are cut at the last line that can begin a
    statement. If what is before it compiles, that line does begin one, for nothing is open there.

    Raises:
        SyntaxError, ValueError, MemoryError, RecursionError: as ``compile`` does of the whole.
    """
    if "\r" in source or "\f" in source:  # lines that only Python's own tokenizer sees
        return _split_tree(source, name)
    start = _last_statement(source)
    tail = "\n" * source.count("\n", 0, start) + source[start:]
    try:
        before = compile(source[:start], name, "exec", dont_inherit=True)
        flags = before.co_flags & _FUTURE
        try:
            return [before], compile(tail, name, "eval", flags, dont_inherit=True)
        except SyntaxError:
            if ";" not in tail and "__future__" not in tail:  # which may stand at the beginning alone
                return [before, compile(tail, name, "exec", flags, dont_inherit=True)], None
    except Exception:  # noqa: S110 - cut in the wrong place, or wrong as a whole, which is told below
        pass
    return _split_tree(source, name)


def _last_statement(source: str) -> int:
    """Where the last line begins that looks as if it began a statement; 0 where none does."""
    end = len(source)
    while end > 0:
        start = source.rfind("\n", 0, end) + 1
        if _STATEMENT.match(source, start):
            return start
        end = start - 1
    return 0


def _split_tree(source: str, name: str) -> tuple[list[CodeType], CodeType | None]:
    tree = cast("ast.Module", compile(source, name, "exec", ast.PyCF_ONLY_AST, dont_inherit=True))
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr) or _is_silenced(source, last):
        return [compile(tree, name, "exec", dont_inherit=True)], None
    del tree.body[-1]
    value = compile(ast.Expression(last.value), name, "eval", dont_inherit=True)
    return [compile(tree, name, "exec", dont_inherit=True)], value


def _is_silenced(source: str, last: ast.Expr) -> bool:
    """Whether a ``;`` follows the expression."""
    lines = re.split(r"\r\n|\r|\n", source)[(last.end_lineno or 1) - 1 :]
    rest = lines[0].encode()[last.end_col_offset or 0 :]
    return rest.lstrip().startswith(b";")
