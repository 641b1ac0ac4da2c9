"""Figures of runs, and differences of runs over the same examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from .records import Record, Tokens, total
from .runs import ModelSettings, Run, read_runs
from .stats import Agreement, Difference, Interval, agreement, bootstrap, mean, paired, wilson


@dataclass(frozen=True, slots=True)
class Share:
    """The share of right answers, with Wilson's interval."""

    right: int
    n: int
    interval: Interval

    @property
    def value(self) -> float:
        """From 0 to 1."""
        return self.right / self.n


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean with its bootstrap interval."""

    value: float
    n: int
    interval: Interval


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a run; None if unknown."""

    run: str
    folder: str
    task: str
    strategy: str
    supervisor_model: str
    worker_model: str
    judge_model: str
    seed: int | None
    data_hash: str
    # Examples in the sample, those that ended, and those that failed among these.
    planned: int | None
    examples: int
    failed: int
    # Over the examples with a verdict.
    accuracy: Share | None
    # The task's main figure over the examples with a score; the means of all its figures; the mean score of
    # each kind of example.
    score: Mean | None
    f1: Mean | None
    metrics: Mapping[str, float]
    kinds: Mapping[str, float]
    # Steps, tokens, dollars and seconds include failed examples.
    steps: int
    supervisor: Tokens
    worker: Tokens
    judge: Tokens
    # The judge is no cost of the strategy.
    cost_usd: float | None
    judge_cost_usd: float | None
    # A sum: examples that ran at the same time count each for itself.
    seconds: float
    stop_reasons: Mapping[str, int]
    judged: Agreement | None

    @property
    def steps_mean(self) -> float | None:
        """Mean steps of an example."""
        return self.steps / self.examples if self.examples else None

    @property
    def seconds_mean(self) -> float | None:
        """Mean seconds of an example."""
        return self.seconds / self.examples if self.examples else None

    @property
    def cost_mean(self) -> float | None:
        """Mean dollars of an example."""
        return self.cost_usd / self.examples if self.examples and self.cost_usd is not None else None


@dataclass(frozen=True, slots=True)
class Pair:
    """The first run minus the second, over the examples that ended in both."""

    first: str
    second: str
    shared: int
    accuracy: Difference | None
    score: Difference | None


@dataclass(frozen=True, slots=True)
class Analysis:
    """Runs with their figures, differences and notes."""

    runs: Sequence[Run]
    figures: Sequence[Figures]
    pairs: Sequence[Pair]
    notes: Sequence[str]


def analyse(places: Sequence[Path]) -> Analysis:
    """Analyse all runs in or below some folders."""
    runs, notes = read_runs(places)
    figures = [figures_of(run) for run in runs]
    for run, each in zip(runs, figures, strict=True):
        notes += [f"{run.name}: {note}" for note in (*run.notes, *_remarks(run, each))]
    return Analysis(runs, figures, list(_pairs(runs, figures)), notes)


def figures_of(run: Run) -> Figures:
    """Compute the figures of a run, finished or not."""
    records, settings = run.records, run.settings
    supervisor, worker, judge = (
        total(getattr(record, role) for record in records) for role in ("supervisor", "worker", "judge")
    )
    verdicts = [record.correct for record in records if record.correct is not None]
    return Figures(
        run=run.name,
        folder=str(run.folder),
        task=settings.task,
        strategy=_common([record.strategy for record in records]) or settings.strategy or settings.arm,
        supervisor_model=_model(run, "supervisor", settings.supervisor),
        worker_model=_model(run, "worker", settings.worker),
        judge_model=_model(run, "judge", settings.judge),
        seed=settings.seed,
        data_hash=settings.provenance.data_hash,
        planned=run.planned,
        examples=len(records),
        failed=sum(record.error is not None for record in records),
        accuracy=Share(sum(verdicts), len(verdicts), wilson(sum(verdicts), len(verdicts)))
        if verdicts
        else None,
        score=_mean([record.score for record in records if record.score is not None]),
        f1=_mean([value for record in records if (value := _f1(record)) is not None]),
        metrics=_metrics(records),
        kinds=_kinds(records),
        steps=sum(record.steps for record in records),
        supervisor=supervisor,
        worker=worker,
        judge=judge,
        cost_usd=total((supervisor, worker)).cost_usd,
        judge_cost_usd=judge.cost_usd,
        seconds=sum(record.seconds for record in records),
        stop_reasons=dict(
            Counter(record.stop_reason for record in records if record.stop_reason).most_common()
        ),
        judged=_judged(records),
    )


def _remarks(run: Run, figures: Figures) -> Iterator[str]:
    if figures.examples < (figures.planned or 1) or run.begun:
        planned = "" if figures.planned is None else f" of {figures.planned}"
        begun = f", {run.begun} more were begun and count when they end" if run.begun else ""
        yield f"{figures.examples}{planned} examples have ended{begun}"
    if figures.failed:
        errors = Counter(
            f"{record.error.stage}: {record.error.type}" for record in run.records if record.error
        )
        # A judge's failure can leave a score, such as QASPER's F1.
        scored = sum(record.error is not None and record.score is not None for record in run.records)
        kept = "have no score" if not scored else "have no verdict" if scored == figures.failed else ""
        lacks = kept or f"{figures.failed - scored} of them have no score"
        yield f"{figures.failed} failed and {lacks} ({', '.join(_counted(errors))})"


def _counted(things: Counter[str]) -> list[str]:
    return [f"{name} {count}" for name, count in things.most_common()]


def _pairs(runs: Sequence[Run], figures: Sequence[Figures]) -> Iterator[Pair]:
    for (one, first), (other, second) in combinations(zip(runs, figures, strict=True), 2):
        # Other data gives other scores, so such runs do not compare.
        if (first.task, first.data_hash) == (second.task, second.data_hash):
            shared = list(_shared(one.records, other.records))
            if shared:
                yield compare(first.run, second.run, shared)


def _shared(first: Sequence[Record], second: Sequence[Record]) -> Iterator[tuple[Record, Record]]:
    # The question as well as the id: a run with unreadable settings has no task to compare.
    others = {(record.example, record.query): record for record in second}
    for record in first:
        if other := others.get((record.example, record.query)):
            yield record, other


def compare(first: str, second: str, shared: Sequence[tuple[Record, Record]]) -> Pair:
    """Compute the difference of two runs."""
    verdicts = [(a.correct, b.correct) for a, b in shared if a.correct is not None and b.correct is not None]
    scores = [(a.score, b.score) for a, b in shared if a.score is not None and b.score is not None]
    return Pair(first, second, len(shared), _difference(verdicts), _difference(scores))


def _difference(pairs: Sequence[tuple[float, float]]) -> Difference | None:
    return paired([one for one, _ in pairs], [other for _, other in pairs]) if pairs else None


def _mean(values: Sequence[float]) -> Mean | None:
    return Mean(mean(values), len(values), bootstrap(values)) if values else None


def _judged(records: Sequence[Record]) -> Agreement | None:
    verdicts = [(record.metrics.get("judge"), _f1(record)) for record in records]
    both = [(verdict, f1) for verdict, f1 in verdicts if verdict is not None and f1 is not None]
    return agreement([verdict >= 0.5 for verdict, _ in both], [f1 for _, f1 in both]) if both else None


def _f1(record: Record) -> float | None:
    # A task that also scores evidence has two F1 figures.
    return record.metrics.get("answer_f1", record.metrics.get("f1"))


def _metrics(records: Sequence[Record]) -> dict[str, float]:
    names = dict.fromkeys(name for record in records for name in record.metrics)
    return {
        name: mean([record.metrics[name] for record in records if name in record.metrics]) for name in names
    }


def _kinds(records: Sequence[Record]) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for record in records:
        if record.kind and record.score is not None:
            scores.setdefault(record.kind, []).append(record.score)
    return {kind: mean(scores[kind]) for kind in sorted(scores)}


def _model(run: Run, role: str, settings: ModelSettings) -> str:
    # The records know the model that answered. Without a record, the settings know the planned one.
    recorded = _common([getattr(record, f"{role}_model") for record in run.records])
    return recorded or ("" if run.records else settings.model or settings.handler)


def _common(values: Sequence[str]) -> str:
    # A resumed run can have several.
    return " + ".join(value for value in dict.fromkeys(values) if value)
