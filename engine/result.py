"""What a run gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..handlers import Usage
from .sandbox import Isolation

StopReason = Literal["final", "max_iterations", "budget", "timeout", "sandbox_lost", "cancelled"]


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
    """

    answer: str | None
    iterations: int
    supervisor_usage: Usage
    worker_usage: Usage
    elapsed: float
    stop_reason: StopReason
    isolation: Isolation
    run_id: str
