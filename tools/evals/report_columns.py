"""What is shown of runs and of their differences, and what is written of them as CSV and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .analysis import Figures, Mean, Pair, Share
from .layout import Column
from .stats import Difference, Interval

_NOTHING = "-"


def model_name(model: str) -> str:
    """The last part of a model's path, as tables show it."""
    return model.rstrip("/").rsplit("/", 1)[-1] or _NOTHING


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
    Column("Strategy", lambda run: run.strategy or _NOTHING, left=True),
    Column("Accuracy 95%", lambda run: _interval(run.accuracy, ".0%")),
    Column("Score", lambda run: _value(run.score)),
    Column("Score 95%", lambda run: _interval(run.score, ".3f")),
    Column("F1", lambda run: _value(run.f1)),
    Column("F1 95%", lambda run: _interval(run.f1, ".3f")),
    Column("Dollars", lambda run: _number(run.cost_usd, ",.4f", "?")),
    Column("Avg Seconds", lambda run: _number(run.seconds_mean, ",.1f")),
    Column("Stop Reasons", lambda run: counted(run.stop_reasons) or _NOTHING, left=True),
    Column("Failed", lambda run: f"{run.failed:,}"),
    Column("Judge = F1", lambda run: f"{run.judged.share:.0%} of {run.judged.n}" if run.judged else _NOTHING),
    Column("Run", lambda run: run.run, left=True),
)

PAIRS: tuple[Column[Pair], ...] = (
    Column("Run", lambda pair: pair.first, left=True),
    Column("Minus", lambda pair: pair.second, left=True),
    Column("Shared", lambda pair: f"{pair.shared:,}"),
    Column("Accuracy", lambda pair: _percent(pair.accuracy)),
    Column("95%", lambda pair: _interval(pair.accuracy, "+.0%")),
    Column("Right Alone", lambda pair: _alone(pair.accuracy)),
    Column("McNemar p", lambda pair: _p(pair.accuracy)),
    Column("Score", lambda pair: _number(pair.score.mean if pair.score else None, "+.3f")),
    Column("Score 95%", lambda pair: _interval(pair.score, "+.3f")),
    Column("Sign p", lambda pair: _p(pair.score)),
)


def run_fields(run: Figures) -> dict[str, Any]:
    """All of a run's figures, for CSV and JSON: shares and scores from 0 to 1, seconds, dollars."""
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
            for role, tokens in (("supervisor", run.supervisor), ("worker", run.worker), ("judge", run.judge))
            for name, value in tokens.model_dump().items()
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
    """All of a pair's figures, for CSV and JSON: the first minus the second."""
    return {
        "first": pair.first,
        "second": pair.second,
        "shared": pair.shared,
        **_difference("accuracy", pair.accuracy),
        **_difference("score", pair.score),
    }


def counted(counts: Mapping[str, float]) -> str:
    """As ``final 18, timeout 2``."""
    return ", ".join(f"{name} {count:.6g}" for name, count in counts.items())


def _estimate(name: str, figure: Share | Mean | None) -> dict[str, float | None]:
    return {name: figure.value if figure else None, **_ends(name, figure)}


def _difference(name: str, found: Difference | None) -> dict[str, float | None]:
    return {
        f"{name}_pairs": found.n if found else 0,
        f"{name}_difference": found.mean if found else None,
        **_ends(name, found),
        f"{name}_more": found.more if found else None,
        f"{name}_less": found.less if found else None,
        f"{name}_p": found.p if found else None,
    }


def _ends(name: str, figure: Share | Mean | Difference | None) -> dict[str, float | None]:
    interval = _known(figure)
    return {f"{name}_low": interval and interval.low, f"{name}_high": interval and interval.high}


def _known(figure: Share | Mean | Difference | None) -> Interval | None:
    """The interval, if there is one: values that are all equal tell resampling nothing of how far the mean may be off."""
    if figure is None or figure.interval.low == figure.interval.high:
        return None
    return figure.interval


def _share(share: Share | None) -> str:
    return f"{share.value:.0%} ({share.right}/{share.n})" if share else _NOTHING


def _value(figure: Mean | None) -> str:
    return f"{figure.value:.3f}" if figure else _NOTHING


def _number(value: float | None, form: str, unknown: str = _NOTHING) -> str:
    return unknown if value is None else format(value, form)


def _interval(figure: Share | Mean | Difference | None, form: str) -> str:
    interval = _known(figure)
    return f"{interval.low:{form}} to {interval.high:{form}}" if interval else _NOTHING


def _percent(found: Difference | None) -> str:
    return f"{found.mean:+.0%}" if found else _NOTHING


def _alone(found: Difference | None) -> str:
    return f"{found.more} : {found.less}" if found else _NOTHING


def _p(found: Difference | None) -> str:
    if found is None:
        return _NOTHING
    return "<0.001" if found.p < 0.001 else f"{found.p:.3f}"
