"""What was found, as rows: a median with its spread, what it is beside our own, and whether the goal is met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from .figures import Spread, ratio, shown, spread
from .metrics import OURS, Goal, Metric


class Series(NamedTuple):
    """Whose figures they are, and of what."""

    metric: str
    variant: str
    subject: str


Records = Mapping[Series, Sequence[float]]
"""The figures of each round."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        ratio: ours divided by this one, round by round, where this is a peer; where a goal compares two variants of
            ours, this divided by the other.
        goal: what it is to be; empty where there is no goal.
        met: whether it is; None where there is no goal.
    """

    series: Series
    unit: str
    spread: Spread
    ratio: float | None
    goal: str
    met: bool | None

    def as_data(self, values: Sequence[float]) -> dict[str, Any]:
        """For JSON."""
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
    """The table's lines in order: of each metric, variant by variant, ours first."""
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
    wanted = "" if is_ours else series.subject
    goals = [goal for goal in metric.goals if (goal.variant, goal.peer) == (series.variant, wanted)]
    goal = goals[0] if goals else None
    own, middle = records[series], spread(records[series])
    compared: float | None = None
    if is_ours and goal is not None and goal.than is not None:
        compared = ratio(own, records.get(series._replace(variant=goal.than), ()))
    elif not is_ours:
        compared = ratio(records.get(series._replace(subject=OURS), ()), own)
    figure = compared if goal is not None and (goal.peer or goal.than is not None) else middle.median
    met = None if goal is None or figure is None else goal.is_met(figure)
    return Row(series, metric.unit, middle, compared, "" if goal is None else _words(goal, metric.unit), met)


def _words(goal: Goal, unit: str) -> str:
    sign = "≥" if goal.at_least else "≤"
    if goal.peer:
        return f"{sign} {goal.bound:g} of it"
    if goal.than is not None:
        return f"{sign} {goal.bound:g} of {goal.than!r}"
    return f"{sign} {goal.bound:g} {unit}"


HEADINGS = ("", "median", "p25", "p75", "", "ratio", "goal", "met")


def cells(metrics: Sequence[Metric], lines: Sequence[Row]) -> list[tuple[str, ...]]:
    """The rows as text, under ``HEADINGS``; peers stand indented below what they are measured beside."""
    titles = {metric.name: metric.title for metric in metrics}
    found: list[tuple[str, ...]] = []
    for row in lines:
        name, variant, subject = row.series
        label = f"{titles[name]} {variant}".rstrip() if subject == OURS else f"  {subject}"
        if subject not in (OURS, *_peers_of_ours(lines, row)):
            label = f"{titles[name]}: {variant or subject}"
        middle = row.spread
        met = "" if row.met is None else "yes" if row.met else "no"
        compared = "" if row.ratio is None else shown(row.ratio)
        numbers = map(shown, (middle.median, middle.low, middle.high))
        found.append((label, *numbers, row.unit, compared, row.goal, met))
    return found


def _peers_of_ours(lines: Sequence[Row], row: Row) -> list[str]:
    """Whose rows stand below one of ours of the same variant."""
    ours = row.series._replace(subject=OURS)
    return [row.series.subject] if any(other.series == ours for other in lines) else []


def as_text(metrics: Sequence[Metric], lines: Sequence[Row]) -> str:
    """A table for a terminal."""
    table = [HEADINGS, *cells(metrics, lines)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    numeric = {1, 2, 3, 5}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place in numeric else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )


def as_markdown(metrics: Sequence[Metric], lines: Sequence[Row]) -> str:
    """The same table for a README."""
    table = [[cell.replace("  ", "&emsp;", 1) for cell in line] for line in cells(metrics, lines)]
    marks = ("---", "--:", "--:", "--:", "---", "--:", "---", "---")
    return "\n".join("| " + " | ".join(line) + " |" for line in [HEADINGS, marks, *table])
