"""Intervals and tests of results, against figures that are published or were worked out by hand."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supdist.tools.evals.stats import (
    Difference,
    Interval,
    agreement,
    bootstrap,
    mean,
    paired,
    sign_test,
    wilson,
)

scores = st.lists(st.floats(0, 1), min_size=1, max_size=12)
pairs_of_scores = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12)


# Shares


def test_wilson_gives_the_published_figures() -> None:
    """8 of 20 by hand, with z = 1.959964; 81 of 263 is R. G. Newcombe's example (1998), 0.2553 to 0.3662."""
    assert wilson(8, 20) == pytest.approx((0.218807, 0.613418), abs=1e-6)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.161125), abs=1e-6)
    assert wilson(20, 20) == pytest.approx((0.838875, 1), abs=1e-6)


@given(st.integers(1, 10_000), st.data())
def test_wilson_holds_the_share_and_stays_within_bounds(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1
    assert wilson(n - right, n) == pytest.approx((1 - high, 1 - low))


@given(st.integers(1, 1000), st.data())
def test_wilson_narrows_as_examples_come_in(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    (low, high), (lower, higher) = wilson(2 * right, 2 * n), wilson(right, n)
    assert high - low < higher - lower


@pytest.mark.parametrize(("right", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_what_is_no_share_is_refused(right: int, n: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        wilson(right, n)


# Means


@given(scores, st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_the_bootstrap_stays_among_the_values_and_is_repeated_by_its_seed(
    values: list[float], seed: int
) -> None:
    low, high = bootstrap(values, seed)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert bootstrap(values, seed) == (low, high)


def test_the_bootstrap_of_equal_values_is_that_value() -> None:
    assert bootstrap([0.25] * 7) == (0.25, 0.25)
    assert bootstrap([0.5]) == (0.5, 0.5)


def test_the_bootstrap_of_verdicts_is_near_the_binomial_quantiles() -> None:
    """Resampled means of 50 of 100 are binomial, whose 2.5 % and 97.5 % quantiles are 40 and 60."""
    low, high = bootstrap([0.0, 1.0] * 50)
    assert low == pytest.approx(0.40, abs=0.011)
    assert high == pytest.approx(0.60, abs=0.011)


def test_the_bootstrap_leans_to_where_the_values_are_stretched() -> None:
    values = [(i / 60) ** 6 for i in range(60)]
    low, high = bootstrap(values)
    assert high - mean(values) > 1.1 * (mean(values) - low)


def test_the_expansion_for_many_values_meets_the_resampling_for_fewer() -> None:
    draw = random.Random(1)
    values = [draw.random() ** 6 for _ in range(1000)]
    # 1,002 values of the same distribution, to within two of them.
    resampled, expanded = bootstrap(values), bootstrap([*values, *values[:2]])
    assert expanded == pytest.approx(resampled, abs=0.0015)
    assert expanded.high - expanded.low > 0.02


def test_the_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    draw = random.Random(3)
    trials = [bootstrap([draw.random() ** 2 for _ in range(20)], seed) for seed in range(60)]
    assert 0.85 <= mean([low <= 1 / 3 <= high for low, high in trials]) <= 0.99


def test_values_too_close_to_square_are_no_error() -> None:
    low, high = bootstrap([0.0, 0.0, 1e-200])
    assert 0 <= low <= high <= 1e-200


def test_no_values_have_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean([])


# Pairs


@pytest.mark.parametrize(
    ("more", "less", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (1, 6, 0.125), (3, 3, 1.0), (2, 10, 158 / 4096),
        (10, 2, 158 / 4096)],
)  # fmt: skip
def test_the_sign_test_is_the_binomial_by_hand(more: int, less: int, p: float) -> None:
    """2 of 12: (1 + 12 + 66) / 2^12, twice."""
    assert sign_test(more, less) == p


def test_the_sign_test_of_thousands_is_exact_and_near_the_normal() -> None:
    assert sign_test(4900, 5100) == pytest.approx(math.erfc(199 / 100 / math.sqrt(2)), rel=1e-3)
    assert sign_test(0, 5000) == 0.0


def test_a_paired_difference_by_hand() -> None:
    first, second = [1.0, 1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0, 0.0]
    found = paired(first, second)
    assert (found.n, found.mean, found.more, found.less) == (5, 0.4, 3, 1)
    assert found.p == sign_test(3, 1) == 0.625
    assert found.interval.low < 0.4 < found.interval.high


@given(pairs_of_scores)
@settings(max_examples=25, deadline=None)
def test_swapping_the_two_negates_the_difference(pairs: list[tuple[float, float]]) -> None:
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    there, back = paired(first, second), paired(second, first)
    assert (back.mean, back.more, back.less, back.p) == (-there.mean, there.less, there.more, there.p)
    assert back.interval == pytest.approx((-there.interval.high, -there.interval.low), abs=1e-9)


def test_a_run_does_not_differ_from_itself() -> None:
    values = [0.2, 0.9, 0.4]
    assert paired(values, values) == Difference(3, 0.0, Interval(0.0, 0.0), 0, 0, 1.0)


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired([0.1, 0.2], [0.1])


# Verdicts beside scores


def test_agreement_by_hand() -> None:
    """Four of five agree; chance is .4 x .6 + .6 x .4; of six pairs five are in order, one is a tie."""
    found = agreement([True, True, False, False, False], [0.9, 0.5, 0.5, 0.2, 0.0])
    assert found.n == 5
    assert found.share == 0.8
    assert found.kappa == pytest.approx((0.8 - (0.4 * 0.6 + 0.6 * 0.4)) / (1 - 0.48))
    assert found.auc == pytest.approx(5.5 / 6)


def test_agreement_with_a_judge_that_always_says_yes_has_no_kappa() -> None:
    found = agreement([True, True], [0.9, 0.1])
    assert (found.share, found.kappa, found.auc) == (0.5, None, None)
