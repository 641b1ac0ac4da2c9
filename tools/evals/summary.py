"""What came of an experiment, in a few numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .config import ExperimentConfig
from .records import Record, Tokens


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of a list of records.

    Attributes:
        supervisor_model, worker_model, judge_model: names; empty where there is none.
        examples: how many.
        failed: those without a score.
        judged, correct: those of which it is known whether they are right, and those that are.
        score: the mean of the task's main figure over those that have one; None where none has.
        metrics: the means of all figures by name.
        steps: turns of the supervisor, all together.
        supervisor, worker, judge: what their calls took, all together.
    """

    task: str
    strategy: str
    supervisor_model: str
    worker_model: str
    judge_model: str
    examples: int
    failed: int
    judged: int
    correct: int
    score: float | None
    metrics: dict[str, float]
    steps: int
    supervisor: Tokens
    worker: Tokens
    judge: Tokens

    @classmethod
    def of(cls, config: ExperimentConfig, records: Sequence[Record]) -> Summary:
        """Of these records."""
        supervisor, worker, _ = config.models
        names = sorted({name for record in records for name in record.metrics})
        return cls(
            task=config.task,
            strategy=config.strategy,
            supervisor_model=supervisor,
            worker_model=worker,
            judge_model=next((record.judge_model for record in records), ""),
            examples=len(records),
            failed=sum(record.error is not None for record in records),
            judged=sum(record.correct is not None for record in records),
            correct=sum(record.correct is True for record in records),
            score=mean(record.score for record in records),
            metrics={name: mean(record.metrics.get(name) for record in records) or 0.0 for name in names},
            steps=sum(record.steps for record in records),
            supervisor=total(record.supervisor for record in records),
            worker=total(record.worker for record in records),
            judge=total(record.judge for record in records),
        )

    @property
    def cost_usd(self) -> float | None:
        """Dollars, of all models; None where a price is unknown."""
        return total((self.supervisor, self.worker, self.judge)).cost_usd


def total(parts: Iterable[Tokens]) -> Tokens:
    """The sum."""
    each = list(parts)
    costs = [part.cost_usd for part in each if part.cost_usd is not None]
    return Tokens(
        calls=sum(part.calls for part in each),
        input=sum(part.input for part in each),
        output=sum(part.output for part in each),
        cached=sum(part.cached for part in each),
        cost_usd=round(sum(costs), 9) if len(costs) == len(each) else None,
    )


def mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are there; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
