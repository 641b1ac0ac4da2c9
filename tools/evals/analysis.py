"""What runs come to: their figures, one by one, and the differences of runs over the same examples.

What counts:

- Examples that have ended, and no others: one that is under way has spent tokens but has no answer, and is only told.
- Steps, tokens, dollars and seconds are those of all examples that ended, failed ones too: they were spent.
- Accuracy is over the examples that have a verdict, scores over those that have a score. A failed example has
  neither, and is counted apart: it says nothing of the strategy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from .records import Record, Tokens, total
from .runs import Run, read_runs, table_in
from .stats import Agreement, Difference, Interval, agreement, bootstrap, mean, paired, wilson


@dataclass(frozen=True, slots=True)
class Share:
    """How many are right, of those with a verdict, with Wilson's interval."""

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
    """The figures of a run. Figures that nothing can be said of are None.

    Attributes:
        run: its name among the others.
        planned: examples in the sample; None where it is not known.
        examples: of them, those that have ended.
        failed: of these, those without a score because something broke.
        score: the task's main figure.
        metrics: the means of all figures of the task, by name.
        kinds: the mean scores of the examples of a kind, by kind.
        cost_usd: dollars of supervisor and worker; None where a price is unknown.
        judge_cost_usd: those of the judge, which are no cost of the strategy.
        judged: the judge's verdicts beside F1.
        stop_reasons: how many runs of the engine ended for each.
    """

    run: str
    folder: str
    task: str
    strategy: str
    supervisor_model: str
    worker_model: str
    judge_model: str
    seed: int | None
    data_hash: str
    planned: int | None
    examples: int
    failed: int
    accuracy: Share | None
    score: Mean | None
    f1: Mean | None
    metrics: Mapping[str, float]
    kinds: Mapping[str, float]
    steps: int
    supervisor: Tokens
    worker: Tokens
    judge: Tokens
    cost_usd: float | None
    judge_cost_usd: float | None
    seconds: float
    stop_reasons: Mapping[str, int]
    judged: Agreement | None

    @property
    def steps_mean(self) -> float | None:
        """Steps of an example."""
        return self.steps / self.examples if self.examples else None

    @property
    def seconds_mean(self) -> float | None:
        """Seconds of an example; those of examples that ran at the same time count each for itself."""
        return self.seconds / self.examples if self.examples else None

    @property
    def cost_mean(self) -> float | None:
        """Dollars of an example."""
        return self.cost_usd / self.examples if self.examples and self.cost_usd is not None else None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs over the same examples: the first minus the second.

    Attributes:
        shared: examples that both have ended.
        accuracy: the difference of verdicts, and McNemar's test; None where no shared example has two.
        score: the difference of the task's main figure.
    """

    first: str
    second: str
    shared: int
    accuracy: Difference | None
    score: Difference | None


@dataclass(frozen=True, slots=True)
class Analysis:
    """Runs, their figures in the same order, their differences, and what there is to say besides, a line each."""

    runs: Sequence[Run]
    figures: Sequence[Figures]
    pairs: Sequence[Pair]
    notes: Sequence[str]


def analyse(places: Sequence[Path]) -> Analysis:
    """All runs in folders that are runs, or lie above runs."""
    runs, notes = read_runs(places)
    figures = [figures_of(run) for run in runs]
    for run, each in zip(runs, figures, strict=True):
        notes += [f"{run.name}: {note}" for note in (*run.notes, *_remarks(run, each))]
    return Analysis(runs, figures, list(_pairs(runs, figures)), notes)


def figures_of(run: Run) -> Figures:
    """The figures of a run, as far as it has come."""
    records, config = run.records, run.config
    supervisor, worker, judge = (
        total(getattr(record, role) for record in records) for role in ("supervisor", "worker", "judge")
    )
    verdicts = [record.correct for record in records if record.correct is not None]
    seed = config.get("seed")
    return Figures(
        run=run.name,
        folder=str(run.folder),
        task=_text(config, "task"),
        strategy=_common([record.strategy for record in records])
        or _text(config, "strategy")
        or _text(config, "arm"),
        supervisor_model=_model(run, "supervisor"),
        worker_model=_model(run, "worker"),
        judge_model=_model(run, "judge"),
        seed=seed if isinstance(seed, int) else None,
        data_hash=_text(run.provenance, "data_hash"),
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
        begun = f", {run.begun} more are begun and count when they have ended" if run.begun else ""
        yield f"{figures.examples}{planned} examples have ended{begun}"
    if figures.failed:
        errors = Counter(
            f"{record.error.stage}: {record.error.type}" for record in run.records if record.error
        )
        yield f"{figures.failed} failed, and are in no score ({', '.join(_counted(errors))})"


def _counted(things: Counter[str]) -> list[str]:
    return [f"{name} {count}" for name, count in things.most_common()]


def _pairs(runs: Sequence[Run], figures: Sequence[Figures]) -> Iterator[Pair]:
    for (one, first), (other, second) in combinations(zip(runs, figures, strict=True), 2):
        if (first.task, first.data_hash) == (second.task, second.data_hash):
            shared = list(_shared(one.records, other.records))
            if shared:
                yield compare(first.run, second.run, shared)


def _shared(first: Sequence[Record], second: Sequence[Record]) -> Iterator[tuple[Record, Record]]:
    # The question as well as its id: a run whose settings cannot be read says nothing of its task.
    others = {(record.example, record.query): record for record in second}
    for record in first:
        if other := others.get((record.example, record.query)):
            yield record, other


def compare(first: str, second: str, shared: Sequence[tuple[Record, Record]]) -> Pair:
    """The difference of two runs over the examples that both have."""
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
    """Of the answer: a task that scores evidence, too, says which is which."""
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


def _model(run: Run, role: str) -> str:
    """From the records; from the settings where no example has ended."""
    recorded = _common([getattr(record, f"{role}_model") for record in run.records])
    spec = table_in(run.config, role)
    return recorded or ("" if run.records else _text(spec, "model") or _text(spec, "handler"))


def _common(values: Sequence[str]) -> str:
    """Mostly there is one."""
    return " + ".join(value for value in dict.fromkeys(values) if value)


def _text(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    return value if isinstance(value, str) else ""
