"""Compile a block: its statements, and its last expression, whose value is shown."""

from __future__ import annotations
import __future__

import ast
import re
from types import CodeType
from typing import cast

_FUTURE = __future__.annotations.compiler_flag
_STATEMENT = re.compile(r"(?!(?:elif|else|except|finally)\b)[^\s#)\]}]")


def split(source: str, name: str) -> tuple[list[CodeType], CodeType | None]:
    """Return the code to execute in order, and the last expression's code, if shown.

    Raises:
        SyntaxError, ValueError, MemoryError, RecursionError: as ``compile`` does.
    """
    # Only Python's tokenizer knows where lines with these characters end.
    if "\r" in source or "\f" in source:
        return _split_tree(source, name)
    # A syntax tree takes longer than compiling. So the block is cut at its last line that can begin a
    # statement. If the part before it compiles, no bracket or string is open there, and the line does begin
    # one.
    start = _last_statement(source)
    tail = "\n" * source.count("\n", 0, start) + source[start:]
    try:
        before = compile(source[:start], name, "exec", dont_inherit=True)
        flags = before.co_flags & _FUTURE
        try:
            return [before], compile(tail, name, "eval", flags, dont_inherit=True)
        except SyntaxError:
            if ";" not in tail and "__future__" not in tail:  # future imports must come first
                return [before, compile(tail, name, "exec", flags, dont_inherit=True)], None
    except Exception:  # noqa: S110 - a wrong cut, or an error that the next line raises
        pass
    return _split_tree(source, name)


def _last_statement(source: str) -> int:
    # The last line that can begin a statement, or 0.
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
    lines = re.split(r"\r\n|\r|\n", source)[(last.end_lineno or 1) - 1 :]
    rest = lines[0].encode()[last.end_col_offset or 0 :]
    return rest.lstrip().startswith(b";")
