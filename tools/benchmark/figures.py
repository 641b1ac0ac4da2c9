"""Figures of repeated trials: medians, spreads, ratios taken round by round. No I/O."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some values: the median, and the quartiles on both sides of it."""

    median: float
    low: float
    high: float
    count: int


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which this part (0 to 1) of them lies, between two of them in proportion.

    Raises:
        ValueError: there are no values, or no such part.
    """
    if not values or not 0 <= part <= 1:
        raise ValueError("a quantile is of at least one value, for a part from 0 to 1")
    ordered = sorted(values)
    place = part * (len(ordered) - 1)
    below = math.floor(place)
    above = math.ceil(place)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles.

    Raises:
        ValueError: there are no values.
    """
    return Spread(quantile(values, 0.5), quantile(values, 0.25), quantile(values, 0.75), len(values))


def ratio(values: Sequence[float], others: Sequence[float]) -> float | None:
    """The median of the ratios of each round, so that a machine that changes its pace changes both sides of each.

    None where no round has both, or what is divided by is nothing.
    """
    pairs = zip(values, others, strict=False)  # one side may have failed in a later round
    ratios = [value / other for value, other in pairs if other > 0]
    return statistics.median(ratios) if ratios else None


def shown(value: float) -> str:
    """Three digits that count, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"
