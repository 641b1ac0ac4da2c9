"""Intervals and tests for results, without numpy: the same figures on every machine."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, fsum, sqrt
from random import Random
from statistics import NormalDist
from typing import NamedTuple

_NORMAL = NormalDist()
_TAIL = _NORMAL.inv_cdf(0.975)
# Resamples of the bootstrap: fewer for many values, so that about this many values are drawn in all.
_MAX_RESAMPLES, _MIN_RESAMPLES, _DRAWS = 5_000, 1_000, 1_000_000
_MAX_RESAMPLED = 1_000


class Interval(NamedTuple):
    """A closed 95 % interval."""

    low: float
    high: float


# E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
# Unlike the normal interval it is right at 0 of n, at n of n, and for small n.
def wilson(right: int, n: int) -> Interval:
    """Return Wilson's interval of the share ``right`` of ``n``.

    Raises:
        ValueError: ``n`` is not positive, or ``right`` not from 0 to ``n``.
    """
    if not 0 <= right <= n or n == 0:
        raise ValueError(f"{right} of {n} is no share")
    z = _TAIL
    share = right / n
    centre = share + z * z / (2 * n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The ends at 0 and at n are exact: the formula misses them by a rounding error.
    low = 0.0 if right == 0 else (centre - half) / scale
    high = 1.0 if right == n else (centre + half) / scale
    return Interval(low, high)


def mean(values: Sequence[float]) -> float:
    """Return the mean, correctly rounded.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    return fsum(values) / len(values)


# B. Efron, "Better bootstrap confidence intervals", JASA 82 (1987): bias-corrected and accelerated (BCa).
# The expansion for many values: P. Hall, "The Bootstrap and Edgeworth Expansion" (1992).
def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """Return the BCa bootstrap interval of the mean; of equal values, its width is 0.

    Raises:
        ValueError: there are no values.
    """
    centre = mean(values)
    if min(values) == max(values):
        return Interval(values[0], values[0])
    squares = fsum((value - centre) ** 2 for value in values)
    # Values that are almost equal can have squares too small for a float.
    cubes, spread = fsum((value - centre) ** 3 for value in values), squares**1.5
    # The jackknife's acceleration of a mean: the skewness of the values over 6 sqrt(n).
    acceleration = cubes / (6 * spread) if spread else 0.0
    if len(values) > _MAX_RESAMPLED:
        # The Cornish-Fisher expansion is nearer to the bootstrap distribution here than resampling is.
        error = sqrt(squares) / len(values)
        # To this order, the bias of a mean equals its acceleration.
        places = (_corrected(z, acceleration, acceleration) for z in (-_TAIL, _TAIL))
        low, high = (centre + error * (z + acceleration * (z * z - 1)) for z in places)
    else:
        means = _resampled_means(values, seed)
        bias = _bias(means, centre)
        low, high = (
            _quantile(means, _NORMAL.cdf(_corrected(z, bias, acceleration))) for z in (-_TAIL, _TAIL)
        )
    return Interval(low, high)


def _resampled_means(values: Sequence[float], seed: int) -> list[float]:
    n = len(values)
    times = max(_MIN_RESAMPLES, min(_MAX_RESAMPLES, _DRAWS // n))
    draw = Random(seed).choices  # noqa: S311 - a seed, so that the figure can be reproduced
    return sorted(fsum(draw(values, k=n)) / n for _ in range(times))


def _bias(means: Sequence[float], centre: float) -> float:
    below = (bisect_left(means, centre) + bisect_right(means, centre)) / 2 / len(means)
    edge = 0.5 / len(means)
    return _NORMAL.inv_cdf(min(max(below, edge), 1 - edge))


def _corrected(z: float, bias: float, acceleration: float) -> float:
    return bias + (bias + z) / (1 - acceleration * (bias + z))


def _quantile(ordered: Sequence[float], share: float) -> float:
    # Interpolated between the two nearest order statistics.
    place = share * (len(ordered) - 1)
    index = min(floor(place), len(ordered) - 2)
    return ordered[index] + (place - index) * (ordered[index + 1] - ordered[index])


# Q. McNemar, Psychometrika 12 (1947): over pairs of verdicts, the sign test is the exact form of his test.
def sign_test(more: int, less: int) -> float:
    """Return the two-sided exact p-value of the pairs that differ; 1.0 if none does."""
    n = more + less
    # Integers until the last division: exact for any number of pairs.
    ways = tail = 1
    for k in range(1, min(more, less) + 1):
        ways = ways * (n - k + 1) // k
        tail += ways
    return min(1.0, 2 * tail / 2**n)


@dataclass(frozen=True, slots=True)
class Difference:
    """The differences of two runs over ``n`` shared examples: ``first`` minus ``second``.

    Attributes:
        interval: of the mean, by the paired bootstrap.
        more, less: pairs in which the first is higher, and lower.
        p: of ``sign_test``.
    """

    n: int
    mean: float
    interval: Interval
    more: int
    less: int
    p: float


def paired(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Difference:
    """Return the differences, example by example.

    Raises:
        ValueError: there are no values, or the lengths differ.
    """
    differences = [one - other for one, other in zip(first, second, strict=True)]
    more = sum(value > 0 for value in differences)
    less = sum(value < 0 for value in differences)
    return Difference(
        len(differences),
        mean(differences),
        bootstrap(differences, seed=seed),
        more,
        less,
        sign_test(more, less),
    )


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement of verdicts and scores over ``n`` examples.

    Attributes:
        share: where the score reaches the threshold exactly if the verdict is right.
        kappa: Cohen's; None if verdicts or scores are constant.
        auc: area under the ROC curve; None if all verdicts are equal.
    """

    n: int
    share: float
    kappa: float | None
    auc: float | None


# J. Cohen, "A coefficient of agreement for nominal scales" (1960): agreement beyond that of chance.
def agreement(verdicts: Sequence[bool], scores: Sequence[float], threshold: float = 0.5) -> Agreement:
    """Compare verdicts with the scores of the same answers.

    Raises:
        ValueError: there are no values, or the lengths differ.
    """
    pairs = list(zip(verdicts, scores, strict=True))
    share = mean([verdict == (score >= threshold) for verdict, score in pairs])
    yes, high = mean(verdicts), mean([score >= threshold for score in scores])
    chance = yes * high + (1 - yes) * (1 - high)
    constant = yes in (0.0, 1.0) or high in (0.0, 1.0)
    return Agreement(len(pairs), share, None if constant else (share - chance) / (1 - chance), _auc(pairs))


def _auc(pairs: Sequence[tuple[bool, float]]) -> float | None:
    right = [score for verdict, score in pairs if verdict]
    wrong = sorted(score for verdict, score in pairs if not verdict)
    if not right or not wrong:
        return None
    # The Mann-Whitney statistic over the number of pairs; a tie counts half.
    above = sum(bisect_left(wrong, score) + bisect_right(wrong, score) for score in right)
    return above / 2 / (len(right) * len(wrong))
