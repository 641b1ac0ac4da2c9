"""Draw runs as PNG and SVG: accuracy against cost, steps, and length of the context."""

from __future__ import annotations

import contextlib
import io
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from ...engine.private_files import PrivateFolder
from ...sandbox_image.text import one_line, shorten_middle
from .analysis import Analysis, Figures
from .records import Record
from .report import model_name
from .stats import Interval, bootstrap, mean, wilson

# Colours that colour-blind people can tell apart: M. Okabe and K. Ito (2008).
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")
_MARKERS = "osD^vP*X<>"
_LABEL_CHARACTERS = 44
# Points on paper between two marks at one x, and between the first and the last.
_OFFSET, _TOTAL_OFFSET = 5.0, 40.0
_BINS = 5
_NEXT_BIN = 1.25


# Axes and figures are Any: matplotlib's own annotations leave its keywords open.


class MissingLibrary(Exception):
    """matplotlib is not installed."""


@dataclass(frozen=True, slots=True)
class Point:
    """A mark with its 95 % intervals: ``across`` along x, ``up`` along y."""

    x: float
    y: float
    across: Interval | None
    up: Interval


@dataclass(frozen=True, slots=True)
class Series:
    """The marks of a run, ordered by x."""

    label: str
    points: Sequence[Point]


def plot(found: Analysis, folder: Path) -> list[str]:
    """Write ``accuracy-cost``, ``accuracy-steps`` and ``accuracy-context``; return a line about each.

    Raises:
        MissingLibrary: the extra ``plots`` is not installed.
        OSError: the folder cannot be written.
    """
    matplotlib = _library()
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for drawing in drawings(found):
        path = folder / drawing.name
        if drawing.figure is None:
            lines.append(f"{path}: nothing to draw, no run has the figures for it")
        else:
            _write(matplotlib, drawing.figure, path)
            lines.append(f"{path}.png and .svg: {len(drawing.series)} of {len(found.runs)} runs")
    return lines


@dataclass(frozen=True, slots=True)
class Drawing:
    """A plot before it is written. Its matplotlib ``figure`` is None if no run has marks."""

    name: str
    series: Sequence[Series]
    figure: Any


def drawings(found: Analysis) -> Iterator[Drawing]:
    """Yield the plots."""
    labels = _labels(found.figures)
    y_axis = _y_axis(found)
    by_context = _by_context([record.context_chars for run in found.runs for record in run.records])
    for name, title, points_of, far in (
        ("accuracy-cost", "Dollars an example, supervisor and worker", _mean_mark(_cost), 20.0),
        ("accuracy-steps", "Steps an example", _mean_mark(lambda record: record.steps), 20.0),
        # Neighbouring bins may differ by a quarter, so that a linear axis must be short.
        ("accuracy-context", "Characters of the context", by_context, 3.0),
    ):
        series = [
            Series(label, points)
            for label, run in zip(labels, found.runs, strict=True)
            if (points := points_of(run.records, y_axis))
        ]
        yield Drawing(name, series, _figure(series, title, y_axis, far) if series else None)


@dataclass(frozen=True, slots=True)
class YAxis:
    """The y axis: accuracy, or the mean score if a run has no verdicts."""

    title: str
    of: Callable[[Record], float | None]
    interval: Callable[[Sequence[float]], Interval]


def _y_axis(found: Analysis) -> YAxis:
    if all(run.accuracy for run in found.figures if run.examples):
        return YAxis(
            "Accuracy", lambda record: record.correct, lambda values: wilson(round(sum(values)), len(values))
        )
    return YAxis("Mean score", lambda record: record.score, bootstrap)


PointsOf = Callable[[Sequence[Record], YAxis], Sequence[Point]]


def _mean_mark(figure: Callable[[Record], float | None]) -> PointsOf:
    """Return a function that gives a run one mark, at the mean of a figure."""

    def points(records: Sequence[Record], y_axis: YAxis) -> Sequence[Point]:
        values = [value for record in records if (value := y_axis.of(record)) is not None]
        figures = [figure(record) for record in records]
        known = [value for value in figures if value is not None]
        # The mean of the known figures alone would mislead.
        if not values or len(known) < len(figures):
            return []
        return [Point(mean(known), mean(values), bootstrap(known), y_axis.interval(values))]

    return points


def _cost(record: Record) -> float | None:
    supervisor, worker = record.supervisor.cost_usd, record.worker.cost_usd
    return None if supervisor is None or worker is None else supervisor + worker


def _by_context(lengths: Sequence[int]) -> PointsOf:
    ends = bin_ends(lengths)

    def points(records: Sequence[Record], y_axis: YAxis) -> Sequence[Point]:
        groups: dict[int, list[tuple[int, float]]] = {}
        for record in records:
            if (value := y_axis.of(record)) is not None:
                groups.setdefault(bisect_left(ends, record.context_chars), []).append(
                    (record.context_chars, value)
                )
        return [_group(groups[place], y_axis) for place in sorted(groups)]

    return points


def bin_ends(lengths: Sequence[int]) -> list[int]:
    """Return the longest context of each bin; there is a mark for each bin of a run.

    A bin has at least a fifth of all runs' contexts. Its shortest one is longer by ``_NEXT_BIN`` than the
    longest of the bin before: else their marks would lie on each other.
    """
    ordered = sorted(lengths)
    ends: list[int] = []
    first = 0
    for place, (length, after) in enumerate(pairwise(ordered), 1):
        if (place - first) * _BINS >= len(ordered) and after >= _NEXT_BIN * length:
            ends.append(length)
            first = place
    return [*ends, *ordered[-1:]]


def _group(pairs: Sequence[tuple[int, float]], y_axis: YAxis) -> Point:
    values = [value for _, value in pairs]
    return Point(mean([length for length, _ in pairs]), mean(values), None, y_axis.interval(values))


def _labels(figures: Sequence[Figures]) -> list[str]:
    # Equal labels get the name of the run behind them.
    labels = [_label(run) for run in figures]
    return [
        label if labels.count(label) == 1 else f"{label} ({_shortened(run.run)})"
        for label, run in zip(labels, figures, strict=True)
    ]


def _label(run: Figures) -> str:
    models = [model for model in (run.supervisor_model, run.worker_model) if model]
    names = " + ".join(_shortened(model_name(model)) for model in models)
    return ", ".join(part for part in (names, run.strategy) if part) or "unknown"


def _shortened(name: str) -> str:
    return shorten_middle(one_line(name), _LABEL_CHARACTERS)


def _figure(series: Sequence[Series], title: str, y_axis: YAxis, far: float) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure: Any = Figure(figsize=(7.5, 4.5 + 0.24 * len(series)), layout="constrained")
    axes = figure.add_subplot()
    marks = [_draw(axes, each, index, len(series)) for index, each in enumerate(series)]
    axes.set_xlabel(title)
    axes.set_ylabel(y_axis.title)
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.margins(x=0.08)
    _scale(axes, series, far)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    # Below the axes, where long names cover no mark. Matplotlib omits a label that begins with an underscore.
    labels = [f" {each.label}" if each.label.startswith("_") else each.label for each in series]
    legend = figure.legend(marks, labels, loc="outside lower left", ncols=1, frameon=False, fontsize="small")
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _draw(axes: Any, series: Series, index: int, count: int) -> Any:
    """Draw the marks of a run, and return the handle for the legend."""
    from matplotlib.transforms import ScaledTranslation

    points = series.points
    xs, ys = [point.x for point in points], [point.y for point in points]
    across = [point.across for point in points if point.across]
    # Marks at one x are drawn beside each other, so that each bar is visible.
    is_wide = any(bar.high > bar.low for bar in across)
    aside = 0.0 if is_wide else min(_OFFSET, _TOTAL_OFFSET / count) * (index - (count - 1) / 2) / 72
    drawn = axes.errorbar(
        xs,
        ys,
        xerr=_bars(xs, across) if across else None,
        yerr=_bars(ys, [point.up for point in points]),
        transform=axes.transData + ScaledTranslation(aside, 0, axes.figure.dpi_scale_trans),
        color=_COLOURS[index % len(_COLOURS)],
        marker=_MARKERS[index % len(_MARKERS)],
        markersize=7,
        linestyle="-" if len(points) > 1 else "none",
        linewidth=1.2,
        elinewidth=1,
        capsize=3,
        alpha=0.9,
    )
    # Matplotlib ignores marks with an offset when it chooses the limits.
    axes.update_datalim([(x, 0.5) for x in (*xs, *chain.from_iterable(across))])
    axes.autoscale_view(scaley=False)
    return drawn[0]


def _bars(centres: Sequence[float], intervals: Sequence[Interval]) -> list[list[float]]:
    pairs = list(zip(centres, intervals, strict=True))
    return [[max(0.0, x - bar.low) for x, bar in pairs], [max(0.0, bar.high - x) for x, bar in pairs]]


def _scale(axes: Any, series: Sequence[Series], far: float) -> None:
    # From zero, or logarithmic if a mark is ``far`` times as large as another one.
    # Free models have marks at zero.
    from matplotlib.ticker import EngFormatter, NullFormatter

    xs = sorted(point.x for each in series for point in each.points)
    positive = [x for x in xs if x > 0]
    is_far = bool(positive) and xs[-1] > far * positive[0]
    if not positive:
        axes.set_xlim(-1, 1)
        axes.set_xticks([0])
    elif is_far and xs[0] > 0:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif is_far:
        # Linear between zero and the first positive mark, logarithmic from there.
        axes.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
        axes.set_xlim(left=-0.3 * positive[0])
    else:
        axes.set_xlim(-0.03 * xs[-1], 1.08 * xs[-1])
    if xs[-1] >= 1000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _library() -> Any:
    try:
        # From another directory: matplotlib reads, and in some versions executes, a matplotlibrc of this one.
        with contextlib.chdir("/"):
            return import_module("matplotlib")
    except ImportError as error:
        raise MissingLibrary(
            "matplotlib is not installed; install the extra: pip install 'supdist-engine[plots]'"
        ) from error


def _write(matplotlib: Any, figure: Any, path: Path) -> None:
    # Text stays text in the SVG, and equal runs give equal files.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "supdist"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # drawn as a box
        _save(figure, path.with_suffix(".png"), dpi=160)
        _save(figure, path.with_suffix(".svg"), metadata={"Date": None})


def _save(figure: Any, path: Path, **options: Any) -> None:
    # A link at this path is replaced, and not followed.
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix[1:], **options)
    with PrivateFolder.open(path.parent) as folder, folder.replacing(path.name, mode=0o644) as file:
        file.write(image.getvalue())
