"""How answers are compared: the official rules by hand-computed cases, and laws over all texts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supdist.tasks.metrics import (
    best,
    contains,
    exact_match,
    mean,
    normalize,
    numbers,
    numeric_score,
    set_f1,
    share_found,
    token_f1,
)

TEXTS = st.text() | st.lists(
    st.sampled_from(
        [
            "the",
            "a",
            "An",
            "state-of-the-art",
            "the\u2019s",
            "BERT",
            "bert.",
            "\u2013",
            "ünï",
            "\u00a0",
            "x_y",
        ]
    )
).map(" ".join)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Quick, brown fox!", "quick brown fox"),
        ("state-of-the-art", "stateoftheart"),  # hyphens vanish, and the article within stays
        ("state of the art", "state of art"),
        ("a an the", ""),
        ("", ""),
        ("Theatre and another", "theatre and another"),
        ("A-1", "a1"),
        ("x_the_y", "xthey"),  # the underscore is punctuation, and gone before articles are looked for
        (
            "the\u2019s end",
            "\u2019s end",
        ),  # a typographic apostrophe is none of ASCII's: it stays, and ends a word
        ("“the” model", "“ ” model"),
        ("an\u0301 b", "\u0301 b"),  # so does a combining accent
        ("the\u00a0model\u2003x\u2028y", "model x y"),
        ("\u200bthe", "\u200b"),  # a zero-width space is no space
        ("İ", "i̇"),
        ("(12%)", "12"),
        ("1,204.5", "12045"),
    ],
)
def test_normalisation_is_squads(text: str, normal: str) -> None:
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("prediction", "reference", "f1"),
    [
        ("the CNN model", "A CNN.", 2 / 3),
        ("Yes", "yes.", 1),
        (
            "a b b",
            "b b b",
            2 * 1 * (2 / 3) / (1 + 2 / 3),
        ),  # "a" is an article; words count as often as they occur
        ("English, German", "German and English", 2 * 1 * (2 / 3) / (1 + 2 / 3)),
        ("BERT-based", "BERT based", 0),
        ("", "", 0),
        ("the", "a", 0),
        ("", "Unanswerable", 0),
        ("not it", "it", 2 / 3),
    ],
)
def test_token_f1_by_hand(prediction: str, reference: str, f1: float) -> None:
    assert token_f1(prediction, reference) == pytest.approx(f1, abs=1e-12)


@given(TEXTS, TEXTS)
def test_token_f1_is_symmetric_and_from_0_to_1(one: str, other: str) -> None:
    assert token_f1(one, other) == token_f1(other, one)
    assert 0 <= token_f1(one, other) <= 1
    assert token_f1(one, one) == (1 if normalize(one) else 0)


@given(TEXTS)
def test_what_is_normalised_has_no_two_spaces_and_no_capitals(text: str) -> None:
    normal = normalize(text)
    assert normal == " ".join(normal.split())
    assert normal == normal.lower()


@given(TEXTS, st.lists(TEXTS))
def test_the_best_is_the_maximum_and_no_order_changes_it(answer: str, references: list[str]) -> None:
    score = best(token_f1, answer, references)
    assert score == best(token_f1, answer, list(reversed(references)))
    assert score == max([0.0, *(token_f1(answer, reference) for reference in references)])


def test_exact_match_and_contains() -> None:
    assert exact_match("The CNN!", "cnn") == 1
    assert exact_match("CNN model", "cnn") == 0
    assert contains("They used fibre-reinforced polymer, mostly.", "Fibre-Reinforced Polymer") == 1
    assert contains("particular", "art") == 0, "words, not letters"
    assert contains("anything", "the") == 0, "a reference without words is nowhere"


@given(st.frozensets(st.integers(0, 9)), st.frozensets(st.integers(0, 9)))
def test_set_f1_is_symmetric_and_1_just_where_equal(one: frozenset[int], other: frozenset[int]) -> None:
    assert set_f1(one, other) == set_f1(other, one)
    assert 0 <= set_f1(one, other) <= 1
    assert (set_f1(one, other) == 1) == (one == other)
    assert set_f1(one | {10}, one | {11, 12}) == pytest.approx(
        2 * len(one) / (2 * len(one) + 3)  # of sets: twice what is common, over both sizes
    )


def test_the_share_found_is_of_substrings_in_any_case() -> None:
    assert share_found("They are ABC and def.", ["abc", "DEF", "ghi", "jkl"]) == 0.5
    with pytest.raises(ValueError, match="no references"):
        share_found("x", [])


@given(st.integers(-(10**6), 10**6), st.integers(0, 10**6))
def test_numbers_are_worth_less_by_a_quarter_for_each_that_they_are_off(answer: int, right: int) -> None:
    score = numeric_score(answer, right)
    assert (score == 1) == (answer == right)
    assert numeric_score(answer, answer + 1) == 0.75
    assert score == pytest.approx(math.exp(abs(answer - right) * math.log(0.75)), rel=1e-6)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("12", [12]),
        ("about 1,204 of -3.5.", [1204, -3.5]),
        ("(12,57)", [12, 57]),
        ("BERT4 and 4th and v2", []),
        ("no number", []),
        ("$7", [7]),
    ],
)
def test_numbers_in_a_text(text: str, found: list[float]) -> None:
    assert numbers(text) == found


def test_the_mean_of_nothing_is_0() -> None:
    assert mean([]) == 0
    assert mean([1, 0]) == 0.5
