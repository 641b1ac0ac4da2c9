"""Fences as models write them: each block is found, and none is glued to the next."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supdist.engine.supervisor.blocks import code_blocks

TOKENS = [
    "<|im_end|>", "</s>", "<|eot_id|>", "<end_of_turn>", "<end_code>", "<|endoftext|>", "<eos>", "[/INST]",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", " <|im_end|>", "</s><|im_end|>",
]  # fmt: skip


@pytest.mark.parametrize("token", TOKENS, ids=ascii)
def test_a_special_token_at_the_end_is_no_code(token: str) -> None:
    for end in (f"\n```{token}", f"\n```\n{token}", f"\n{token}\n```", f"```{token}", f"\n{token}", token):
        assert code_blocks(f"```repl\nprint(1){end}") == ["print(1)"], end
    message = f"```repl\nx = 1\n```{token}\nand\n```repl\nprint(x)\n```"
    assert code_blocks(message) == ["x = 1", "print(x)"]


def test_a_special_token_in_a_string_or_comment_is_code() -> None:
    for code in ("x = '<|im_end|>'", "x = '''\n</s>\n'''", "a < b  # List<b>"):
        assert code_blocks(f"```repl\n{code}\n```") == [code]


@pytest.mark.parametrize(
    "info",
    ["{python}", "{.python}", "{python .cell}", "python3.11", "tool_code", "py", "ipython", "ipython3",
     "PYTHON", 'python title="a.py"', "{code-cell}", "repl", "{repl}", "REPL", "repl id=1", " repl",
     "repl\u200b", "repl\t"],
)  # fmt: skip
def test_languages_are_found_as_models_write_them(info: str) -> None:
    assert code_blocks(f"```{info}\nx\n```") == ["x"]
    assert code_blocks(f"~~~{info}\r\nx\r\n~~~\r\n") == ["x"]


@pytest.mark.parametrize("info", ["pycon", "text", "json", "python-traceback", "replace", "bash"])
def test_other_languages_are_not_run(info: str) -> None:
    assert code_blocks(f"```{info}\nx\n```") == []


CODE = "if x:\n    y()\n\nz()"


@pytest.mark.parametrize("before", ["- ", "* ", "1. ", "  2) ", "\t", "    "], ids=ascii)
def test_a_block_in_a_list_item_is_dedented(before: str) -> None:
    indent = " " * len(before) if before.strip() else before
    lines = textwrap.indent(f"{CODE}\n```", indent)
    assert code_blocks(f"Do:\n{before}```repl\n{lines}\nThen:\n```repl\n1\n```") == [CODE, "1"]


def test_a_block_in_a_block_quote_is_dedented() -> None:
    lines = textwrap.indent(f"```repl\n{CODE}\n```", "> ", lambda _: True)
    assert code_blocks(f"I do:\n{lines}\nand more") == [CODE]


def test_a_block_on_one_line() -> None:
    assert code_blocks("```repl print(1)```") == ["print(1)"]
    assert code_blocks("- ```repl print(1) ```</s>\n- ```repl print(2)```") == ["print(1)", "print(2)"]
    assert code_blocks("```repl``` blocks hold code, and `x` none.") == []


@pytest.mark.parametrize("mark", ["\ufeff", "\u200b", "\u200b\u2060 "], ids=ascii)
def test_invisible_characters_beside_a_fence_change_nothing(mark: str) -> None:
    assert code_blocks(f"{mark}```repl\nx\n{mark}```{mark}\n{mark}```repl\ny\n```") == ["x", "y"]


@pytest.mark.parametrize("first", ["x = 1", "x = '''a'''", "x = '''a'''\nx = = 1", "x = = 1"])
def test_a_block_without_a_closing_fence_is_not_glued_to_the_next(first: str) -> None:
    assert code_blocks(f"```repl\n{first}\n```repl\ny = 2\n```") == [first, "y = 2"]
    assert code_blocks(f"```json\n{{}}\n```repl\n{first}\n```repl\ny") == [first, "y"]


def test_a_second_closing_fence_swallows_no_block() -> None:
    assert code_blocks("```repl\nx\n```\n```\nand\n```repl\ny\n```") == ["x", "y"]


def test_a_block_that_markdown_quotes_is_not_run() -> None:
    assert code_blocks("````markdown\n```repl\nx\n```\n````") == []
    assert code_blocks("```markdown\n```repl\nx\n```\n```") == []


def test_the_block_in_which_a_message_was_cut_off_is_left_out() -> None:
    whole = "```repl\na\n```\n"
    for rest in ("```repl\nb", "```repl\nFINAL(1)\n``", "```repl\nx = '''\n```\nabc", "```repl", "``"):
        assert code_blocks(whole + rest, is_cut=True) == ["a"], rest
    # An example in another language does not take its place.
    assert code_blocks("```python\nexample\n```\n```repl\nb", is_cut=True) == []
    assert code_blocks(whole, is_cut=True) == ["a"]


BLOCKS = st.sampled_from(
    [
        "x = 1",
        "if x:\n    y()",
        "s = '''\n```\nquoted\n```\n'''",
        's = """\n```repl\nFINAL(1)\n```\n"""',
        "# it's a comment\nprint('`')",
        "s = 'a\\\nb'",
        "x = = 1",
        'print(f"""{x}\n- 1\n> 2\n""")',
    ]
)
PROSE = st.sampled_from(
    ["", "So:", "It's `x`, not ```y```.", "- one\n- two", "> quoted", "<end_of_turn>", "1. First"]
)
ENDS = st.sampled_from(["```", "```</s>", "```\n<|im_end|>", "\u200b```", "```  "])
OPENINGS = st.sampled_from(["```repl", "``` repl", "```REPL", "```{repl}", "\ufeff```repl", "```repl a=1"])


@given(st.lists(st.tuples(PROSE, OPENINGS, BLOCKS, ENDS), max_size=5), st.sampled_from(["\n", "\r\n"]))
def test_blocks_among_prose_are_found_exactly(parts: list[tuple[str, str, str, str]], newline: str) -> None:
    message = "\n".join(line for part in parts for line in part)
    assert code_blocks(message.replace("\n", newline)) == [code for _, _, code, _ in parts]
    assert code_blocks(message, is_cut=True) == [code for _, _, code, _ in parts]
