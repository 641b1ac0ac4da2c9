"""Intervals and tests for the results of experiments. Pure; the same figures on every machine, without numpy.

Sources:

- Wilson interval: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22
  (1927). Unlike the normal one it holds at 0 of n and n of n, and at small n.
- Bootstrap, bias-corrected and accelerated (BCa): B. Efron, "Better bootstrap confidence intervals", JASA 82 (1987);
  for a mean, the jackknife's acceleration is the skewness of the values over 6 sqrt(n). The expansion for many values:
  P. Hall, "The Bootstrap and Edgeworth Expansion" (1992).
- Paired correctness: the exact form of Q. McNemar's test (Psychometrika 12, 1947), a sign test of the pairs that differ.
- Cohen's kappa: J. Cohen, "A coefficient of agreement for nominal scales" (1960). The area under the ROC curve is the
  Mann-Whitney statistic over the number of pairs.
"""

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
_MOST_RESAMPLES, _FEWEST_RESAMPLES, _DRAWS = 5_000, 1_000, 1_000_000
_MOST_RESAMPLED = 1_000


class Interval(NamedTuple):
    """A 95 % interval; both ends belong to it."""

    low: float
    high: float


def wilson(right: int, n: int) -> Interval:
    """Wilson's interval of a share, ``right`` of ``n``.

    Raises:
        ValueError: ``n`` is not positive, or ``right`` is not from 0 to ``n``.
    """
    if not 0 <= right <= n or n == 0:
        raise ValueError(f"{right} of {n} is no share")
    z = _TAIL
    share = right / n
    centre = share + z * z / (2 * n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The ends at none and at all are exact; the formula misses them by a rounding.
    low = 0.0 if right == 0 else (centre - half) / scale
    high = 1.0 if right == n else (centre + half) / scale
    return Interval(low, high)


def mean(values: Sequence[float]) -> float:
    """The mean, correctly rounded.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    return fsum(values) / len(values)


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """The BCa bootstrap interval of the mean; values that are all equal give that value twice.

    By resampling, 5,000 times (from 200 values on less often, never less than 1,000 times); over more than 1,000
    values by the Cornish-Fisher expansion of the bootstrap distribution, which is nearer to it there than resampling.

    Raises:
        ValueError: there are no values.
    """
    centre = mean(values)
    if min(values) == max(values):
        return Interval(values[0], values[0])
    squares = fsum((value - centre) ** 2 for value in values)
    # Values that are all but equal can have squares too small for a number.
    cubes, spread = fsum((value - centre) ** 3 for value in values), squares**1.5
    acceleration = cubes / (6 * spread) if spread else 0.0
    if len(values) > _MOST_RESAMPLED:
        error = sqrt(squares) / len(values)
        # Of a mean, the bias is the acceleration, to this order.
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
    times = max(_FEWEST_RESAMPLES, min(_MOST_RESAMPLES, _DRAWS // n))
    draw = Random(seed).choices  # noqa: S311 - a figure that anybody can compute again
    return sorted(fsum(draw(values, k=n)) / n for _ in range(times))


def _bias(means: Sequence[float], centre: float) -> float:
    below = (bisect_left(means, centre) + bisect_right(means, centre)) / 2 / len(means)
    edge = 0.5 / len(means)
    return _NORMAL.inv_cdf(min(max(below, edge), 1 - edge))


def _corrected(z: float, bias: float, acceleration: float) -> float:
    return bias + (bias + z) / (1 - acceleration * (bias + z))


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two order statistics that are nearest."""
    place = share * (len(ordered) - 1)
    index = min(floor(place), len(ordered) - 2)
    return ordered[index] + (place - index) * (ordered[index + 1] - ordered[index])


def sign_test(more: int, less: int) -> float:
    """Two-sided exact p of so uneven a split of ``more + less`` pairs that differ; 1.0 where none does.

    Over pairs of verdicts, right or wrong, it is the exact McNemar test.
    """
    n = more + less
    # Whole numbers until the last division: exact however many pairs there are.
    ways = tail = 1
    for k in range(1, min(more, less) + 1):
        ways = ways * (n - k + 1) // k
        tail += ways
    return min(1.0, 2 * tail / 2**n)


@dataclass(frozen=True, slots=True)
class Difference:
    """Of the same examples, ``first`` minus ``second``.

    Attributes:
        n: pairs.
        mean: of the differences.
        interval: of that mean, by the paired bootstrap.
        more: pairs in which the first is higher.
        less: pairs in which the second is higher.
        p: two-sided exact sign test; McNemar's where the values are verdicts.
    """

    n: int
    mean: float
    interval: Interval
    more: int
    less: int
    p: float


def paired(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Difference:
    """What the first has over the second, example by example; the two swapped give its negative.

    Raises:
        ValueError: the two have no values, or are not of one length.
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
    """How far verdicts and a graded score say the same.

    Attributes:
        n: examples that have both.
        share: of those on which they agree, a score from ``threshold`` up counting as right.
        kappa: the same beyond chance, Cohen's; None where one of the two always says the same.
        auc: how often a right one has a higher score than a wrong one, ties counting half, whatever the threshold;
            None where all verdicts are equal.
    """

    n: int
    share: float
    kappa: float | None
    auc: float | None


def agreement(verdicts: Sequence[bool], scores: Sequence[float], threshold: float = 0.5) -> Agreement:
    """Verdicts beside graded scores of the same answers.

    Raises:
        ValueError: the two have no values, or are not of one length.
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
    above = sum(bisect_left(wrong, score) + bisect_right(wrong, score) for score in right)
    return above / 2 / (len(right) * len(wrong))
