"""Draw a box plot of each metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from .metrics import Metric
from .report import Records


def draw(folder: Path, metrics: Sequence[Metric], records: Records) -> list[Path]:
    """Write an SVG for each metric, and return the files.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for metric in metrics:
        shown = [series for series in records if series.metric == metric.name and records[series]]
        if not shown:
            continue
        figure = Figure(figsize=(9, 1.5 + 0.3 * len(shown)), layout="constrained")
        axes: Any = figure.subplots()
        axes.boxplot([list(records[series]) for series in shown], orientation="horizontal", showfliers=True)
        labels = [f"{series.subject} {series.variant}".rstrip() for series in shown]
        axes.set_yticks(range(1, len(shown) + 1), labels)
        axes.invert_yaxis()
        # Peers differ by powers of ten. A difference of two times can be negative, and has no logarithm.
        if all(value > 0 for series in shown for value in records[series]):
            axes.set_xscale("log")
        axes.set_xlabel(metric.unit)
        axes.set_title(metric.title)
        files.append(folder / f"{metric.name}.svg")
        cast("Any", figure).savefig(files[-1])
    return files
