"""The limit that ended a run, raised for the command that goes on with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import RunConfig
    from ..result import RunResult

_TIMES = 2


def raised_limits(result: RunResult, config: RunConfig) -> dict[str, str]:
    """Return a flag and its value: the limit that ended the run, doubled; empty if none did."""
    if result.stop_reason not in ("max_iterations", "timeout", "budget"):
        return {}
    # Worker calls that did not fit end no run, but its turns go by without an answer.
    if result.stop_reason == "budget" or result.failed_calls.get("budget_exceeded"):
        return _budget(result, config)
    if result.stop_reason == "timeout":
        return _flag("max_seconds", config.max_seconds)
    return _flag("max_iterations", config.max_iterations)


def _budget(result: RunResult, config: RunConfig) -> dict[str, str]:
    limits = {name: (limit, used) for name, limit, used in _spent(result, config) if limit is not None}
    # The next call did not fit: the limit with the smallest part left is the one that it met.
    name = max(limits, key=lambda each: limits[each][1] / limits[each][0], default=None)
    return {} if name is None else _flag(name, limits[name][0])


def _spent(result: RunResult, config: RunConfig) -> list[tuple[str, float | None, float]]:
    usage = result.supervisor_usage + result.worker_usage
    usage += result.supervisor.earlier + result.worker.earlier
    dollars = [result.cost_usd, result.supervisor.earlier_cost_usd, result.worker.earlier_cost_usd]
    return [
        ("max_worker_calls", config.max_worker_calls, result.worker_calls),
        ("max_tokens", config.max_tokens, usage.input_tokens + usage.output_tokens),
        ("max_cost_usd", config.max_cost_usd, sum(each or 0 for each in dollars)),
    ]


def _flag(name: str, limit: float | None) -> dict[str, str]:
    return {} if limit is None else {f"--{name.replace('_', '-')}": f"{_TIMES * limit:.12g}"}
