"""Text on its way to a model, a file or a person."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supdist.sandbox_image.text import (
    escape_surrogates,
    excerpt,
    has_surrogates,
    one_line,
    printable,
    replace_surrogates,
    shorten,
    shorten_middle,
)

ANY = st.text(st.characters(exclude_categories=[]), max_size=80)


@given(ANY)
def test_cleaned_text_is_utf8_and_valid_text_is_kept(text: str) -> None:
    for clean in (replace_surrogates, escape_surrogates):
        assert has_surrogates(text) or clean(text) == text
        clean(text).encode()


def test_a_pair_is_joined_and_half_a_pair_is_replaced_or_escaped() -> None:
    assert replace_surrogates("a\ud83d\ude00b\ud83d") == "a\N{GRINNING FACE}b\ufffd"
    assert escape_surrogates("a\ud83d\ude00é") == "a\\ud83d\\ude00é"


@given(ANY)
def test_nothing_that_acts_on_a_terminal_is_left(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(each) for each in shown if each not in "\n\t"} & {
        "Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp",
    }  # fmt: skip
    assert one_line(text).isprintable()


@pytest.mark.parametrize("character", ["\n", "\t", "\xa0", "\u2003", "\u3000"])
def test_line_ends_and_wide_spaces_are_escaped_on_one_line_only(character: str) -> None:
    assert printable(character) == character
    assert one_line(character) == ascii(character)[1:-1]


@given(st.text(max_size=500), st.integers(1, 300))
def test_an_excerpt_keeps_head_and_tail_and_counts_the_rest(text: str, limit: int) -> None:
    short = excerpt(text, limit)
    if len(text) <= limit:
        assert short == text
    else:
        head, _, rest = short.partition("\n[... ")
        count, _, tail = rest.partition(" characters left out ...]\n")
        assert text.startswith(head)
        assert text.endswith(tail)
        assert len(head) + len(tail) == limit
        assert int(count.replace(",", "")) == len(text) - limit


@given(st.text(max_size=40), st.integers(2, 30))
def test_shortened_text_is_the_text_or_fits(text: str, limit: int) -> None:
    assert shorten(text, limit) == text or len(shorten(text, limit)) == limit
    assert shorten_middle(text, limit) == text or len(shorten_middle(text, limit)) <= limit + 1
