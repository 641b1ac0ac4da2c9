"""The benchmark's table: medians, quartiles, ratios to the peers, and goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ...sandbox_image.text import one_line
from .. import tables
from .figures import Spread, ratio, shown, spread
from .metrics import OURS, Goal, Metric


class Series(NamedTuple):
    """The figures of a subject for a variant of a metric."""

    metric: str
    variant: str
    subject: str


# The figures of each round.
Records = Mapping[Series, Sequence[float]]

HEADINGS = ("", "median", "p25", "p75", "", "ratio", "goal", "met")
_LEFT = (True, False, False, False, True, False, True, True)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    series: Series
    unit: str
    spread: Spread
    # Our figure divided by this peer's, or by the figure of ours that the goal names.
    ratio: float | None
    goal: str
    met: bool | None

    def as_data(self, values: Sequence[float]) -> dict[str, Any]:
        """Return plain data, for JSON."""
        return {
            **self.series._asdict(),
            "unit": self.unit,
            **asdict(self.spread),
            "ratio": self.ratio,
            "goal": self.goal,
            "met": self.met,
            "rounds": list(values),
        }


def rows(metrics: Sequence[Metric], records: Records) -> list[Row]:
    """Return the rows by metric and variant, ours first."""
    found: list[Row] = []
    for metric in metrics:
        of_metric = [series for series in records if series.metric == metric.name]
        variants = list(dict.fromkeys(series.variant for series in of_metric))
        for variant in variants:
            found.extend(
                _row(metric, series, records)
                for series in of_metric
                if series.variant == variant and records[series]
            )
    return found


def _row(metric: Metric, series: Series, records: Records) -> Row:
    is_ours = series.subject == OURS
    peer = "" if is_ours else series.subject
    goals = [goal for goal in metric.goals if (goal.variant, goal.peer) == (series.variant, peer)]
    goal = goals[0] if goals else None
    own, middle = records[series], spread(records[series])
    compared: float | None = None
    # The goal of a peer's row is about our ratio to it.
    if is_ours and goal is not None and goal.than is not None:
        compared = ratio(own, records.get(series._replace(variant=goal.than), ()))
    elif not is_ours:
        compared = ratio(records.get(series._replace(subject=OURS), ()), own)
    figure = compared if goal is not None and (goal.peer or goal.than is not None) else middle.median
    met = None if goal is None or figure is None else goal.is_met(figure)
    words = "" if goal is None else _goal_words(goal, metric.unit)
    return Row(series, metric.unit, middle, compared, words, met)


def _goal_words(goal: Goal, unit: str) -> str:
    sign = "≥" if goal.at_least else "≤"
    if goal.peer:
        return f"{sign} {goal.bound:g} of it"
    if goal.than is not None:
        return f"{sign} {goal.bound:g} of {goal.than!r}"
    return f"{sign} {goal.bound:g} {unit}"


def cells(metrics: Sequence[Metric], lines: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the cells below ``HEADINGS``."""
    titles = {metric.name: metric.title for metric in metrics}
    ours = {row.series for row in lines if row.series.subject == OURS}
    found: list[tuple[str, ...]] = []
    for row in lines:
        name, variant, subject = row.series
        if subject == OURS:
            label = f"{titles[name]} {variant}".rstrip()
        # A peer is indented below our row of the same variant.
        elif row.series._replace(subject=OURS) in ours:
            label = f"  {subject}"
        else:
            label = f"{titles[name]}: {variant or subject}"
        middle = row.spread
        met = "" if row.met is None else "yes" if row.met else "no"
        compared = "" if row.ratio is None else shown(row.ratio)
        numbers = map(shown, (middle.median, middle.low, middle.high))
        found.append((label, *numbers, row.unit, compared, row.goal, met))
    return found


def as_text(metrics: Sequence[Metric], lines: Sequence[Row], width: int | None = None) -> str:
    """Return the table as text, at most ``width`` columns wide."""
    body = [[one_line(cell) for cell in line] for line in cells(metrics, lines)]
    return tables.as_text(tables.Table(HEADINGS, _LEFT, body, ruled=False), width)


def as_markdown(metrics: Sequence[Metric], lines: Sequence[Row]) -> str:
    """Return the same table as Markdown."""
    # Markdown drops leading spaces, which indent a peer.
    table = [[cell.replace("  ", "&emsp;", 1) for cell in line] for line in cells(metrics, lines)]
    marks = ("---", "--:", "--:", "--:", "---", "--:", "---", "---")
    return "\n".join("| " + " | ".join(line) + " |" for line in [HEADINGS, marks, *table])
