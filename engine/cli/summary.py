"""Say at the end of a run why it ended, what it cost, and where its log is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...sandbox_image.text import printable

if TYPE_CHECKING:
    from ...handlers import Usage
    from ..model_specs import Role
    from ..result import CallTotals, RunResult, StopReason

_ENDS: dict[StopReason, str] = {
    "final": "answered",
    "max_iterations": "all turns used, {best}",
    "timeout": "time limit reached, {best}",
    "sandbox_lost": "sandbox lost, {best}",
    "budget": "budget used, {best}",
    "worker_failed": "worker failed",
    "cut_off": "replies cut off at max_tokens, {best}",
    "cancelled": "cancelled",
}


def summary(result: RunResult, models: Mapping[Role, str]) -> list[str]:
    """Return the lines; ``models`` are what answered for each role, and where."""
    best = "no answer" if result.answer is None else "best answer"
    ended = _ENDS[result.stop_reason].format(best=best)
    turns = f"{result.iterations} turn{'s' if result.iterations != 1 else ''}"
    lines = [" · ".join([f"{ended} in {turns}", f"{result.elapsed:.1f} s", *_cost(result.cost_usd)])]
    calls: dict[Role, tuple[Usage, CallTotals]] = {
        "supervisor": (result.supervisor_usage, result.supervisor),
        "worker": (result.worker_usage, result.worker),
    }
    for role, name in models.items():
        lines.append(f"{role} {printable(name)}: {_calls(*calls[role])}")
    return lines


def _calls(usage: Usage, totals: CallTotals) -> str:
    parts = [f"{_count(usage.calls, 'call')}, {usage.input_tokens:,} tokens in, {usage.output_tokens:,} out"]
    parts += [f"{usage.reasoning_tokens:,} of them thoughts"] if usage.reasoning_tokens else []
    parts += _cost(totals.cost_usd)
    parts += [f"{_count(totals.cached, 'answer')} from the cache"] if totals.cached else []
    parts += [f"{_count(totals.earlier.calls, 'call')} paid before"] if totals.earlier.calls else []
    parts += [f"{totals.retries:,} sent again"] if totals.retries else []
    return " · ".join(parts)


def _cost(dollars: float | None) -> list[str]:
    # Zero is left out: local models cost nothing. None means an unknown price.
    if dollars == 0:
        return []
    return ["price unknown" if dollars is None else f"${dollars:,.4f}"]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
