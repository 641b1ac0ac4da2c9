"""What a run gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..handlers import Usage
from .sandbox import Isolation

StopReason = Literal["final", "max_iterations", "budget", "timeout", "sandbox_lost", "cancelled"]


@dataclass(frozen=True, slots=True)
class CallTotals:
    """What the calls of one model took, over a run.

    Attributes:
        cost_usd: dollars; None once something of unknown price is among it.
        cached: answers that came from the cache, or with an equal request under way.
        retries: attempts that failed before an answer came.
        queue_seconds, model_seconds: sums over all answers.
        earlier: what answers from a cache that outlives runs took when another run paid for them, each once:
            with what this run paid for, it is what the run would have taken by itself.
        earlier_cost_usd: the same in dollars; None once something of unknown price is among it.
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
    """The answer and how it came about.

    Attributes:
        answer: the text given to ``FINAL``, or, where a limit was reached first, the supervisor's best answer;
            None where it gave none.
        iterations: turns of the supervisor, the request for a best answer not counted.
        supervisor_usage, worker_usage: tokens and calls of each.
        elapsed: seconds.
        stop_reason: why the run ended. ``cancelled`` stands in logs alone: whoever cancels gets no result.
        isolation: the walls, as measured from inside.
        run_id: the name of the run in its logs.
        cost_usd: dollars, of supervisor and worker together; None where a price is unknown.
        supervisor, worker: what the calls of each took, summed.
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
