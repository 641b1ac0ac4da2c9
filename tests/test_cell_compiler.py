"""Blocks cut before their last expression, and bounded ``repr``: pure, no sandbox."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from supdist.sandbox_image.guest.cell_compiler import compile_cell, split
from supdist.sandbox_image.guest.safe_repr import bounded_repr

LINES = st.sampled_from(
    [
        "x = 1",
        "x",
        "x + 1",
        "(x)",
        "x;",
        "x; y = 2",
        "y = 2; x",
        "f(",
        "  x,",
        ")",
        '"""',
        "'''",
        "for example",
        "for i in [1]:",
        "    i",
        "if x:",
        "elif x:",
        "else:",
        "try:",
        "except E:",
        "finally:",
        "# a ; comment",
        "",
        "\\",
        "x  # ;",
        "[x",
        "for i in x]",
        '"text"',
        "'''one line'''",
        "@f",
        "def g(): return 1",
        "from __future__ import annotations",
        "z: 'T' = 3",
        "\tx",
        "lambda: 0",
        "x = (yield)",
        "\f",
    ]
)
SOURCES = st.lists(LINES, max_size=7).flatmap(
    lambda lines: st.sampled_from(["\n", "\r\n"]).map(lambda end: end.join(lines))
)


def shows_a_value(source: str) -> bool:
    """By the syntax tree of the whole, and the text behind its last expression."""
    body = ast.parse(source).body
    if not body or not isinstance(body[-1], ast.Expr):
        return False
    lines = source.replace("\r\n", "\n").split("\n")
    rest = "\n".join(lines[(body[-1].end_lineno or 0) - 1 :]).encode()[body[-1].end_col_offset or 0 :]
    return not rest.lstrip().startswith(b";")


@given(SOURCES)
@example("x = 1\n'''\nfor example\n'''")
@example("[x\nfor i in x]")
@example("print(\n  1,\n)")
@example("if x:\n  1\nelse:\n  2")
@example("x = 1\n\fx")
@example("x = 1\nfrom __future__ import annotations")
def test_a_block_is_cut_where_its_syntax_tree_says(source: str) -> None:
    try:
        compile(source, "cell", "exec", dont_inherit=True)
        has_value = shows_a_value(source)
    except SyntaxError as wrong:
        with pytest.raises(SyntaxError, match=re.escape(str(wrong))):
            split(source, "cell")
        return
    _, last = split(source, "cell")
    assert (last is not None) is has_value


@pytest.mark.parametrize(
    ("source", "names", "value"),
    [
        ("", {}, None),
        ("1 + 1", {}, 2),
        ("x = 1\nx + 1  # a comment\n\n# another", {"x": 1}, 2),
        ("x = 1\nx;", {"x": 1}, None),
        ("x = [1,\n2]\nsum(\n  x\n)", {"x": [1, 2]}, 3),
        ("a = 1; a", {"a": 1}, 1),
        ("'docstring'\nx = 1", {"x": 1, "__doc__": "docstring"}, None),
        ("'text'", {}, "text"),
        ('f = str.upper\nf("""\nx = 1\nfor example""")', {"f": str.upper}, "\nX = 1\nFOR EXAMPLE"),
        ("for i in (1, 2):\n    i", {"i": 2}, None),
        ("x = 1\r\nx", {"x": 1}, 1),
    ],
)
def test_what_is_run_and_what_is_shown(source: str, names: dict[str, Any], value: object) -> None:
    namespace: dict[str, Any] = {}
    statements, last = split(source, "cell")
    for part in statements:
        exec(part, namespace)
    shown = eval(last, namespace) if last else None
    del namespace["__builtins__"]
    assert (namespace, shown) == (names, value)


def test_lines_are_numbered_as_in_the_whole() -> None:
    statements, last = split("x = 1\n\n\n(\n    x\n/ 0)", "cell")
    assert last is not None
    namespace: dict[str, Any] = {}
    exec(statements[0], namespace)
    with pytest.raises(ZeroDivisionError) as error:
        eval(last, namespace)
    assert error.value.__traceback__ is not None
    assert error.value.__traceback__.tb_next is not None
    assert error.value.__traceback__.tb_next.tb_lineno == 5


def test_a_future_import_holds_for_the_end_of_the_block_too() -> None:
    statements, last = split("from __future__ import annotations\ndef f(x: Unknown): pass", "cell")
    namespace: dict[str, Any] = {}
    for part in statements:
        exec(part, namespace)
    assert last is None
    assert namespace["f"].__annotations__ == {"x": "Unknown"}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab\n\u00e9'\"")
    | st.binary().map(bytes.hex).map(str.encode),
    lambda inner: (
        st.lists(inner) | st.tuples(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner)
        | st.sets(st.integers()) | st.frozensets(st.text())
    ),
    max_leaves=20,
)  # fmt: skip


@given(VALUES, st.integers(0, 200))
@example({"00'": None}, 2)
@example(["0000'\""], 4)
@example([b"0'000"], 4)
def test_a_bounded_repr_is_repr_or_begins_as_it_does(value: object, most: int) -> None:
    whole, bounded = repr(value), bounded_repr(value, most)
    if len(whole) <= most:
        assert bounded == whole
    else:
        assert len(bounded) > most
        assert bounded[:most] == whole[:most]


def test_a_value_that_holds_itself_is_written_as_python_does() -> None:
    loop: list[object] = [1]
    loop.append(({"loop": loop}, loop))
    assert bounded_repr(loop, 1000) == repr(loop)


def test_no_more_of_a_huge_value_is_written_than_asked_for() -> None:
    class Beyond:
        def __repr__(self) -> str:
            raise AssertionError

    assert len(bounded_repr(["x" * 50, "y" * 100, Beyond()], 100)) < 200
    assert len(bounded_repr("x" * 10_000_000, 100)) < 200


@pytest.mark.parametrize("source", ["(" * 1_000_000, "x = [" + "[]," * 100_000 + "]\n%matplotlib inline"])
def test_code_that_would_take_long_to_rewrite_has_the_error_of_the_compiler(source: str) -> None:
    with pytest.raises(SyntaxError) as raised:
        compile_cell(source, "cell")
    with pytest.raises(SyntaxError) as plain:
        compile(source, "cell", "exec")
    assert raised.value.msg == plain.value.msg
