"""The result of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..handlers import Usage
from ..sandbox_image.text import counted
from .safe_html import facts_html, text_html
from .sandbox import Isolation

# Only logs have "cancelled": a caller that cancels gets no result.
StopReason = Literal[
    "final", "max_iterations", "budget", "timeout", "sandbox_lost", "worker_failed", "cut_off", "cancelled"
]

# Why a prompt of a worker call has no answer. A handler_error is an exception that is no HandlerError.
FailedCall = Literal[
    "no_access", "unreachable", "rate_limit", "timeout", "unavailable", "rejected", "refusal", "cut_off",
    "too_long", "budget_exceeded", "handler_error",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class CallTotals:
    """What the calls of one model took in a run.

    Attributes:
        cost_usd: dollars; None if a price is unknown.
        cached: answers from the cache or from an equal request in flight.
        retries: failed attempts before an answer.
        queue_seconds, model_seconds: sums over all answers.
        earlier, earlier_cost_usd: what other runs paid for the cached answers, each once.
    """

    cost_usd: float | None = 0.0
    cached: int = 0
    retries: int = 0
    queue_seconds: float = 0.0
    model_seconds: float = 0.0
    earlier: Usage = field(default_factory=Usage)
    earlier_cost_usd: float | None = 0.0


@dataclass(frozen=True, slots=True)
class RunResult:
    """The answer of a run, and what it took.

    Attributes:
        answer: the text given to ``FINAL``; after a limit, the supervisor's best answer or None. If the
            worker failed, None or a guess.
        iterations: turns, without the request for a best answer.
        supervisor_usage, worker_usage: tokens and calls.
        elapsed: seconds.
        stop_reason: why the run ended; ``worker_failed`` if the worker was asked and answered nothing;
            ``cut_off`` if the supervisor's replies were cut off at max_tokens before they had any text.
        isolation: as measured from inside the sandbox.
        run_id: the run's name in its log.
        cost_usd: dollars of both models; None if a price is unknown.
        supervisor, worker: what the calls took.
        unstored_answers: paid answers that the cache could not keep.
        log_error: why the log lacks its end; None if it has all events.
        warnings: what else went wrong, in plain words.
        worker_calls: prompts to the worker that ended, from the cache too.
        failed_calls: those without an answer, by kind.
        failure: why the worker failed, or why there is no answer; None if neither is so.
    """

    answer: str | None
    iterations: int
    supervisor_usage: Usage
    worker_usage: Usage
    elapsed: float
    stop_reason: StopReason
    isolation: Isolation
    run_id: str
    cost_usd: float | None = 0.0
    supervisor: CallTotals = field(default_factory=CallTotals)
    worker: CallTotals = field(default_factory=CallTotals)
    unstored_answers: int = 0
    log_error: str | None = None
    warnings: tuple[str, ...] = ()
    worker_calls: int = 0
    failed_calls: Mapping[FailedCall, int] = field(default_factory=dict[FailedCall, int])
    failure: str | None = None

    def _repr_html_(self) -> str:
        answer = text_html(self.answer) if self.answer is not None else text_html("(no answer)", "#a00")
        tokens = self.supervisor_usage + self.worker_usage
        facts = [
            self.stop_reason,
            counted(self.iterations, "turn"),
            counted(self.worker_calls, "worker call"),
            f"{tokens.input_tokens:,} tokens in, {tokens.output_tokens:,} out",
            "price unknown" if self.cost_usd is None else f"${self.cost_usd:,.4f}",
            f"{self.elapsed:.1f} s",
        ]
        problems = [*([self.failure] if self.failure else []), *self.warnings]
        return "".join([answer, facts_html(facts), *(text_html(each, "#a00") for each in problems)])
