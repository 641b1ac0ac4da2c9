from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supdist.engine.supervisor.blocks import code_blocks


def test_blocks_come_in_order_with_the_text_between_left_out() -> None:
    message = "First\n```repl\na = 1\n```\nthen\n```repl\nb = 2\n```\ndone"
    assert code_blocks(message) == ["a = 1", "b = 2"]


def test_python_blocks_count_only_where_there_is_no_repl_block() -> None:
    assert code_blocks("```python\nx\n```") == ["x"]
    assert code_blocks("```py\nx\n```\n```Python\ny\n```") == ["x", "y"]
    assert code_blocks("```python\nan_example\n```\n```repl\nx\n```") == ["x"]


def test_other_languages_and_plain_fences_are_no_code_to_run() -> None:
    assert code_blocks("```\nx\n```\n```json\n{}\n```\n```text\nFINAL(1)\n```") == []
    assert code_blocks("I would call FINAL(42) now, as in `FINAL(x)`.") == []


def test_an_unterminated_last_fence_runs_to_the_end() -> None:
    assert code_blocks("```repl\nprint(1)\nprint(2)") == ["print(1)\nprint(2)"]


def test_a_fence_glued_to_the_last_line_is_no_code() -> None:
    assert code_blocks("```repl\nprint(1)```") == ["print(1)"]


def test_tildes_and_longer_fences() -> None:
    assert code_blocks("~~~repl\nx\n~~~") == ["x"]
    assert code_blocks('````repl\ny = """\n```\n"""\n````') == ['y = """\n```\n"""']


def test_a_fence_inside_a_string_does_not_end_the_block() -> None:
    code = 's = """\n```\nquoted\n```\n"""\nprint(s)'
    assert code_blocks(f"```repl\n{code}\n```\nbye") == [code]


def test_a_fence_of_another_block_inside_a_string_does_not_either() -> None:
    code = 'prompt = """Answer like this:\n```repl\nFINAL(1)\n```\n"""'
    assert code_blocks(f"```repl\n{code}\n```") == [code]


def test_a_block_that_is_no_python_ends_at_its_first_fence() -> None:
    assert code_blocks("```repl\nx = = 1\n```\nand\n```repl\ny = 2\n```") == ["x = = 1", "y = 2"]


def test_indented_fences_lose_their_indentation() -> None:
    assert code_blocks("1. Do\n   ```repl\n   if x:\n       y()\n   ```\n") == ["if x:\n    y()"]


def test_info_strings_windows_line_ends_and_empty_blocks() -> None:
    assert code_blocks("``` repl title=a\r\nx = 1\r\n```\r\n") == ["x = 1"]
    assert code_blocks("```repl\n\n```") == []
    assert code_blocks("```REPL\nx\n```") == ["x"]


def test_parsing_hostile_text_is_bounded() -> None:
    """The parser's own limits hold: it says no, and the engine lives."""
    for body in ("(" * 100_000, "-" * 100_000 + "1", "[" * 5000 + "]" * 5000, "x = '\\d'"):
        assert code_blocks(f"```repl\n{body}\n```") == [body]


@pytest.mark.parametrize(
    "message",
    ["```repl\n(\n" + "```\n" * 4000, ("```repl\n!\n" + "a=1\n```\n" * 20) * 200, "```repl\n(\n```\n" * 4000],
)
def test_a_model_gone_astray_costs_a_bounded_number_of_parses(
    message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = 0
    parse = ast.parse

    def count(source: str) -> ast.Module:
        nonlocal parsed
        parsed += len(source)
        return parse(source)

    monkeypatch.setattr(ast, "parse", count)
    code_blocks(message)
    assert parsed <= 200_000


def test_other_line_ends_are_text() -> None:
    assert code_blocks("```repl\nx = 'a\u2028b\x0c'\n```") == ["x = 'a\u2028b\x0c'"]


@given(st.text(alphabet="`~repl\n xy='\"", max_size=200))
def test_no_text_makes_it_raise(text: str) -> None:
    for block in code_blocks(text):
        assert block.strip()


PARTS = st.sampled_from(
    [
        "```repl\n",
        "```",
        "\n",
        "~~~",
        "x = 1\n",
        "  ",
        "\r\n",
        '"""',
        "'",
        "\\\n",
        "# c",
        "`",
        "\r",
        "   ```repl\n   if x:\n",
    ]
)


@given(st.lists(PARTS, max_size=12).map("".join))
def test_blocks_are_found_in_slices_as_at_once(message: str) -> None:
    # Fences of more than a slice are none.
    longest = max(8, *map(len, message.split("\n")))
    patch = pytest.MonkeyPatch()
    with patch.context() as small:
        small.setattr("supdist.engine.supervisor.blocks.SLICE", longest + 1)
        small.setattr("supdist.engine.slices.SLICE", longest + 1)
        found = code_blocks(message)
    assert found == code_blocks(message)


@given(st.lists(st.sampled_from(['"""', "'", "a", "\n", "\\", "# c\n", "```\n"]), max_size=8).map("".join))
def test_long_code_ends_where_short_code_does_if_it_is_valid(code: str) -> None:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError):
        return
    message = f"```repl\n{code}\n```\nand\n```repl\n1\n```"
    patch = pytest.MonkeyPatch()
    with patch.context() as long:
        long.setattr("supdist.engine.supervisor.blocks._MAX_PARSED_CHARS", 0)
        found = code_blocks(message)
    assert found == code_blocks(message)


@pytest.mark.parametrize(
    "message",
    [
        "```" + " " * 200_000 + "`",
        "`" * 200_000 + "x`",
        " " * 200_000 + "```x`",
        "x\n" * 500_000,
        "```repl\n" * 50_000,
    ],
    ids=["spaces", "backticks", "indent", "lines", "openings"],
)
def test_no_message_takes_more_than_linear_time(message: str) -> None:
    # With a quadratic search each takes minutes.
    assert code_blocks(message) == [] or message.startswith("```repl")
