"""The summary of one experiment, and the columns that compare runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...sandbox_image.text import counted
from ..tables import Column, as_pairs
from .analysis import Figures, Mean, Pair, Share
from .config import ExperimentConfig
from .records import Record, Tokens, total
from .stats import Difference, Interval

ROLES = ("supervisor", "worker", "judge")
_EMPTY = "-"


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one experiment.

    Attributes:
        failed: examples without a score.
        judged, correct: examples with a verdict, and those judged right.
        score, metrics: means of the task's main figure and of all its figures.
        steps, supervisor, worker, judge: sums.
        unstored: paid answers that the cache could not keep, of the examples that ran now.
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
    unstored: int = 0

    @classmethod
    def of(cls, config: ExperimentConfig, records: Sequence[Record]) -> Summary:
        """Sum up the records of an experiment."""
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
            score=_mean(record.score for record in records),
            metrics={name: _mean(record.metrics.get(name) for record in records) or 0.0 for name in names},
            steps=sum(record.steps for record in records),
            supervisor=total(record.supervisor for record in records),
            # Of all examples, failed ones too: their tokens were paid for.
            worker=total(record.worker for record in records),
            judge=total(record.judge for record in records),
        )

    @property
    def cost_usd(self) -> float | None:
        """Dollars of all models; None if a price is unknown."""
        return total((self.supervisor, self.worker, self.judge)).cost_usd

    def as_text(self, width: int | None = None) -> str:
        """Return the figures for a person, one a line."""
        failed = f", {self.failed:,} failed" if self.failed else ""
        rows = [
            ("task", f"{self.task}, strategy {self.strategy}"),
            ("supervisor", self.supervisor_model),
            ("worker", self.worker_model),
            ("judge", self.judge_model),
            ("examples", f"{self.examples:,}{failed}"),
            ("accuracy", _accuracy(self.correct, self.judged)),
            *((f"  {name}", f"{value:.3f}") for name, value in self.metrics.items()),
            ("steps", f"{self.steps:,}, {self.steps / max(1, self.examples):.1f} an example"),
            *(
                (
                    f"{role} tokens",
                    f"{tokens.input:,} in, {tokens.output:,} out, {counted(tokens.calls, 'call')}",
                )
                for role in ROLES
                if (tokens := getattr(self, role)).calls
            ),
            ("cost", _dollars(self.cost_usd)),
            ("not stored", f"{self.unstored:,} paid answers" if self.unstored else ""),
        ]
        return as_pairs([(name, value) for name, value in rows if value], width)

    def as_data(self, folder: str) -> dict[str, Any]:
        """Return the figures as plain data, for ``--json``."""
        roles = {role: getattr(self, role).model_dump() for role in ROLES}
        return {"folder": folder, **asdict(self), **roles, "cost_usd": self.cost_usd}


def standing(records: Sequence[Record]) -> str:
    """Return accuracy, mean score, failures and dollars so far, on one line."""
    judged = [record.correct for record in records if record.correct is not None]
    score = _mean(record.score for record in records)
    failed = sum(record.error is not None for record in records)
    tokens = total(part for each in records for part in (each.supervisor, each.worker, each.judge))
    parts = [
        _accuracy(sum(judged), len(judged)),
        "" if score is None else f"score {score:.3f}",
        f"{failed} failed" if failed else "",
        _dollars(tokens.cost_usd),
    ]
    return " · ".join(part for part in parts if part) or "started"


def _accuracy(correct: int, judged: int) -> str:
    return f"{correct / judged:.0%} right ({correct}/{judged})" if judged else ""


def _dollars(cost: float | None) -> str:
    return "price unknown" if cost is None else f"${cost:,.4f}" if cost else ""


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def model_name(model: str) -> str:
    """Return the last part of a model's path, as tables show it."""
    return model.rstrip("/").rsplit("/", 1)[-1] or _EMPTY


# The table of `analyze --short`. Its titles are documented, and read by programs.
SHORT: tuple[Column[Figures], ...] = (
    Column("Supervisor", lambda run: model_name(run.supervisor_model), left=True),
    Column("Worker", lambda run: model_name(run.worker_model), left=True),
    Column("Accuracy", lambda run: _share(run.accuracy)),
    Column("Avg Steps", lambda run: _number(run.steps_mean, ".1f")),
    Column("Total Steps", lambda run: f"{run.steps:,}"),
    Column("Sup In", lambda run: f"{run.supervisor.input:,}"),
    Column("Sup Out", lambda run: f"{run.supervisor.output:,}"),
    Column("Wrk In", lambda run: f"{run.worker.input:,}"),
    Column("Wrk Out", lambda run: f"{run.worker.output:,}"),
)

RUNS: tuple[Column[Figures], ...] = (
    *SHORT,
    Column("Strategy", lambda run: run.strategy or _EMPTY, left=True),
    Column("Accuracy 95%", lambda run: _interval(run.accuracy, ".0%")),
    Column("Score", lambda run: _value(run.score)),
    Column("Score 95%", lambda run: _interval(run.score, ".3f")),
    Column("F1", lambda run: _value(run.f1)),
    Column("F1 95%", lambda run: _interval(run.f1, ".3f")),
    # "?" and not 0: a price is unknown.
    Column("Dollars", lambda run: _number(run.cost_usd, ",.4f", "?")),
    Column("Avg Seconds", lambda run: _number(run.seconds_mean, ",.1f")),
    Column("Stop Reasons", lambda run: _counts(run.stop_reasons) or _EMPTY, left=True),
    Column("Failed", lambda run: f"{run.failed:,}"),
    Column("Judge = F1", lambda run: f"{run.judged.share:.0%} of {run.judged.n}" if run.judged else _EMPTY),
    Column("Run", lambda run: run.run, left=True),
)

PAIRS: tuple[Column[Pair], ...] = (
    Column("Run", lambda pair: pair.first, left=True),
    Column("Minus", lambda pair: pair.second, left=True),
    Column("Shared", lambda pair: f"{pair.shared:,}"),
    Column("Accuracy", lambda pair: f"{pair.accuracy.mean:+.0%}" if pair.accuracy else _EMPTY),
    Column("95%", lambda pair: _interval(pair.accuracy, "+.0%")),
    Column("Right Alone", lambda pair: _right_alone(pair.accuracy)),
    Column("McNemar p", lambda pair: _p_value(pair.accuracy)),
    Column("Score", lambda pair: _number(pair.score.mean if pair.score else None, "+.3f")),
    Column("Score 95%", lambda pair: _interval(pair.score, "+.3f")),
    Column("Sign p", lambda pair: _p_value(pair.score)),
)


def run_fields(run: Figures) -> dict[str, Any]:
    """Return all figures of a run for CSV and JSON: shares from 0 to 1, seconds, dollars."""
    accuracy, judged = run.accuracy, run.judged
    return {
        "run": run.run,
        "folder": run.folder,
        "task": run.task,
        "strategy": run.strategy,
        "supervisor_model": run.supervisor_model,
        "worker_model": run.worker_model,
        "judge_model": run.judge_model,
        "seed": run.seed,
        "data_hash": run.data_hash,
        "planned": run.planned,
        "examples": run.examples,
        "failed": run.failed,
        "right": accuracy and accuracy.right,
        "verdicts": accuracy.n if accuracy else 0,
        **_estimate("accuracy", accuracy),
        **_estimate("score", run.score),
        **_estimate("f1", run.f1),
        "metrics": dict(run.metrics),
        "kinds": dict(run.kinds),
        "steps": run.steps,
        "steps_mean": run.steps_mean,
        **{
            f"{role}_{name}": value
            for role in ROLES
            for name, value in getattr(run, role).model_dump().items()
        },
        "cost_usd": run.cost_usd,
        "seconds": run.seconds,
        "seconds_mean": run.seconds_mean,
        "stop_reasons": dict(run.stop_reasons),
        "judged": judged.n if judged else 0,
        "judge_f1_agreement": judged and judged.share,
        "judge_f1_kappa": judged and judged.kappa,
        "judge_f1_auc": judged and judged.auc,
    }


def pair_fields(pair: Pair) -> dict[str, Any]:
    """Return all figures of a pair for CSV and JSON."""
    return {
        "first": pair.first,
        "second": pair.second,
        "shared": pair.shared,
        **_difference("accuracy", pair.accuracy),
        **_difference("score", pair.score),
    }


def _counts(counts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {count:.6g}" for name, count in counts.items())


def _estimate(name: str, figure: Share | Mean | None) -> dict[str, float | None]:
    return {name: figure.value if figure else None, **_bounds(name, figure)}


def _difference(name: str, found: Difference | None) -> dict[str, float | None]:
    return {
        f"{name}_pairs": found.n if found else 0,
        f"{name}_difference": found.mean if found else None,
        **_bounds(name, found),
        f"{name}_more": found.more if found else None,
        f"{name}_less": found.less if found else None,
        f"{name}_p": found.p if found else None,
    }


def _bounds(name: str, figure: Share | Mean | Difference | None) -> dict[str, float | None]:
    interval = _known_interval(figure)
    return {f"{name}_low": interval and interval.low, f"{name}_high": interval and interval.high}


def _known_interval(figure: Share | Mean | Difference | None) -> Interval | None:
    # Resampling equal values gives an interval of width 0, which would claim that the mean is exact.
    if figure is None or figure.interval.low == figure.interval.high:
        return None
    return figure.interval


def _share(share: Share | None) -> str:
    return f"{share.value:.0%} ({share.right}/{share.n})" if share else _EMPTY


def _value(figure: Mean | None) -> str:
    return f"{figure.value:.3f}" if figure else _EMPTY


def _number(value: float | None, form: str, unknown: str = _EMPTY) -> str:
    return unknown if value is None else format(value, form)


def _interval(figure: Share | Mean | Difference | None, form: str) -> str:
    interval = _known_interval(figure)
    return f"{interval.low:{form}} to {interval.high:{form}}" if interval else _EMPTY


def _right_alone(found: Difference | None) -> str:
    return f"{found.more} : {found.less}" if found else _EMPTY


def _p_value(found: Difference | None) -> str:
    if found is None:
        return _EMPTY
    return "<0.001" if found.p < 0.001 else f"{found.p:.3f}"
