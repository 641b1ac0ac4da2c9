"""Compile a block: its statements, and its last expression, whose value is shown."""

from __future__ import annotations
import __future__

import ast
import re
from types import CodeType
from typing import NamedTuple, cast

from . import notebook

_FUTURE = __future__.annotations.compiler_flag
_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
_STATEMENT = re.compile(r"(?!(?:elif|else|except|finally)\b)[^\s#)\]}]")


class Cell(NamedTuple):
    """A compiled block.

    Attributes:
        statements: to execute in order.
        last: the last expression, if its value is shown.
        after: to execute at the end.
        has_magics: whether the code needs ``notebook.CALL`` in its namespace.
    """

    statements: list[CodeType]
    last: CodeType | None
    after: CodeType | None = None
    has_magics: bool = False


def compile_cell(source: str, name: str) -> Cell:
    """Compile a block as Python; what does not compile, as IPython takes it (``notebook.py``).

    Raises:
        SyntaxError, ValueError, MemoryError, RecursionError: as ``compile`` does. Messages say what to write.
    """
    try:
        return Cell(*split(source, name))
    except (SyntaxError, ValueError) as error:  # a ValueError in old versions
        if "\0" in source:
            line = source[: source.index("\0")].count("\n") + 1
            raise SyntaxError(
                "the code holds a NUL character (U+0000); in a string write \\0 instead of it",
                (name, line, 1, source.split("\n")[line - 1].replace("\0", "\ufffd")),
            ) from None
        if not isinstance(error, SyntaxError):
            raise
        first = error
    return _compile_notebook(source, name, first)


def _compile_notebook(source: str, name: str, first: SyntaxError) -> Cell:
    try:
        return Cell(*_split_tree(source, name, _AWAIT))
    except SyntaxError:
        pass
    try:
        found = notebook.rewrite(source)
        statements, last = _split_tree(found.code, name, _AWAIT)
    except notebook.TooManyTokens:
        raise first from None
    except SyntaxError as error:
        error.filename = name
        # The error of the code as it was written, unless the rest of it was understood.
        error = first if error.msg == first.msg else error
        hint = notebook.hint_for(error, source)
        if hint:
            error.msg = f"{error.msg}: {hint}"
        raise error from None
    before = [compile(found.before, name, "exec")] if found.before else []
    after = compile(found.after, name, "exec") if found.after else None
    return Cell([*before, *statements], last, after, found.has_magics)


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


def _split_tree(source: str, name: str, flags: int = 0) -> tuple[list[CodeType], CodeType | None]:
    tree = cast("ast.Module", compile(source, name, "exec", ast.PyCF_ONLY_AST | flags, dont_inherit=True))
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr) or _is_silenced(source, last):
        return [compile(tree, name, "exec", flags, dont_inherit=True)], None
    del tree.body[-1]
    value = compile(ast.Expression(last.value), name, "eval", flags, dont_inherit=True)
    return [compile(tree, name, "exec", flags, dont_inherit=True)], value


def _is_silenced(source: str, last: ast.Expr) -> bool:
    lines = re.split(r"\r\n|\r|\n", source)[(last.end_lineno or 1) - 1 :]
    rest = lines[0].encode()[last.end_col_offset or 0 :]
    return rest.lstrip().startswith(b";")
