"""Figures of repeated trials: medians, quartiles, and ratios of rounds. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """The median and the quartiles of some values."""

    median: float
    low: float
    high: float
    count: int


def quantile(values: Sequence[float], part: float) -> float:
    """Return the quantile for a part from 0 to 1, interpolated.

    Raises:
        ValueError: there are no values, or the part is out of bounds.
    """
    if not values or not 0 <= part <= 1:
        raise ValueError("a quantile needs at least one value, and a part from 0 to 1")
    ordered = sorted(values)
    place = part * (len(ordered) - 1)
    below = math.floor(place)
    above = math.ceil(place)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles.

    Raises:
        ValueError: there are no values.
    """
    return Spread(quantile(values, 0.5), quantile(values, 0.25), quantile(values, 0.75), len(values))


def ratio(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Return the median of the rounds' ratios; None if no round has both values."""
    # Round by round: a machine that changes its pace changes both sides. One side may have failed early.
    pairs = zip(values, others, strict=False)
    ratios = [value / other for value, other in pairs if other > 0]
    return statistics.median(ratios) if ratios else None


def shown(value: float) -> str:
    """Return three significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"
