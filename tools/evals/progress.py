"""How an experiment goes, on stderr: a bar on a terminal, calm lines elsewhere; and its result as a table."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ...sandbox_image.text import printable
from .records import Record
from .runner import Observer
from .summary import Summary, mean, total

if TYPE_CHECKING:
    from rich.progress import Progress

_LINE_SECONDS = 10.0
"""Elsewhere than on a terminal a line is written this often at most; failures always."""


@contextmanager
def progress(*, quiet: bool) -> Generator[Observer]:
    """What fits: nothing, a bar where stderr is a terminal, or lines."""
    if quiet:
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _Lines()
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=Console(stderr=True, highlight=False),
        )
        with bar:
            yield _Bar(bar)


def result_table(summary: Summary) -> str:
    """The result, a line a figure."""
    rows = [
        ("task", f"{summary.task}, strategy {summary.strategy}"),
        ("supervisor", summary.supervisor_model),
        ("worker", summary.worker_model),
        ("judge", summary.judge_model),
        ("examples", f"{summary.examples:,}" + (f", {summary.failed:,} failed" if summary.failed else "")),
        ("accuracy", _accuracy(summary.correct, summary.judged)),
        *((f"  {name}", f"{value:.3f}") for name, value in summary.metrics.items()),
        ("steps", f"{summary.steps:,}, {summary.steps / max(1, summary.examples):.1f} an example"),
        *(
            (f"{role} tokens", f"{tokens.input:,} in, {tokens.output:,} out, {tokens.calls:,} calls")
            for role in ("supervisor", "worker", "judge")
            if (tokens := getattr(summary, role)).calls
        ),
        ("cost", _dollars(summary.cost_usd)),
    ]
    return "\n".join(f"{name:<18} {printable(value)}" for name, value in rows if value)


def as_data(summary: Summary, folder: str) -> dict[str, Any]:
    """The result as plain data, for ``--json``."""
    data = asdict(summary)
    roles = {role: getattr(summary, role).model_dump() for role in ("supervisor", "worker", "judge")}
    return {"folder": folder, **data, **roles, "cost_usd": summary.cost_usd}


class _Silent:
    def note(self, text: str) -> None:
        pass

    def begin(self, total: int, ended: Sequence[Record]) -> None:
        pass

    def ended(self, record: Record) -> None:
        pass


class _Lines:
    def __init__(self) -> None:
        self._records: list[Record] = []
        self._examples = 0
        self._due = 0.0

    def note(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)

    def begin(self, total: int, ended: Sequence[Record]) -> None:
        self._examples, self._records = total, list(ended)
        before = f", {len(ended)} of them ended before" if ended else ""
        self.note(f"{total} examples{before}")

    def ended(self, record: Record) -> None:
        self._records.append(record)
        if record.error is not None:
            self.note(_failed(record))
        if time.monotonic() >= self._due or len(self._records) == self._examples:
            self.note(f"{len(self._records)}/{self._examples} · {standing(self._records)}")
            self._due = time.monotonic() + _LINE_SECONDS


class _Bar:
    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("getting ready", total=None)
        self._records: list[Record] = []

    def note(self, text: str) -> None:
        self._bar.console.print(printable(text), style="yellow", markup=False)

    def begin(self, total: int, ended: Sequence[Record]) -> None:
        self._records = list(ended)
        self._bar.reset(self._task, total=total, description=standing(self._records))
        self._bar.update(self._task, completed=len(ended))

    def ended(self, record: Record) -> None:
        self._records.append(record)
        if record.error is not None:
            self.note(_failed(record))
        self._bar.update(self._task, advance=1, description=standing(self._records))


def standing(records: Sequence[Record]) -> str:
    """How it stands: right answers, the mean score, failures, dollars."""
    judged = [record.correct for record in records if record.correct is not None]
    score = mean(record.score for record in records)
    failed = sum(record.error is not None for record in records)
    parts = [
        _accuracy(sum(judged), len(judged)),
        "" if score is None else f"score {score:.3f}",
        f"{failed} failed" if failed else "",
        _dollars(
            total(part for each in records for part in (each.supervisor, each.worker, each.judge)).cost_usd
        ),
    ]
    return " · ".join(part for part in parts if part) or "begun"


def _failed(record: Record) -> str:
    assert record.error is not None
    what = "failed" if record.error.stage == "run" else "could not be judged"
    return f"{record.example} {what}: {record.error.type}: {record.error.message}"


def _accuracy(correct: int, judged: int) -> str:
    return f"{correct / judged:.0%} right ({correct}/{judged})" if judged else ""


def _dollars(cost: float | None) -> str:
    return "price unknown" if cost is None else f"${cost:,.4f}" if cost else ""
