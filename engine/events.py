"""The events that ``on_event`` receives during a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..handlers import RetryReason, Usage
from .result import FailedCall, RunResult
from .sandbox import CellResult, Isolation

ModelRole = Literal["supervisor", "worker"]


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The sandbox is ready; nothing was spent yet."""

    run_id: str
    isolation: Isolation
    max_iterations: int


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The supervisor is asked."""

    step: int


@dataclass(frozen=True, slots=True)
class SupervisorReplied:
    """The whole message of the supervisor, untrusted; ``elapsed`` in seconds.

    ``finish_reason`` is ``length`` if it was cut off at max_tokens. ``thoughts`` counts their characters.
    """

    step: int
    text: str
    usage: Usage
    elapsed: float
    finish_reason: str = "stop"
    thoughts: int = 0


@dataclass(frozen=True, slots=True)
class BlockStarted:
    """A block begins: ``block`` of ``blocks`` in its message."""

    step: int
    block: int
    blocks: int
    code: str


@dataclass(frozen=True, slots=True)
class BlockEnded:
    """A block ended."""

    step: int
    result: CellResult


@dataclass(frozen=True, slots=True)
class SupervisorWrote:
    """A piece of that message as it arrives, untrusted."""

    step: int
    text: str


@dataclass(frozen=True, slots=True)
class Remaining:
    """What is left of a budget; None is no limit."""

    worker_calls: int | None
    tokens: int | None
    dollars: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Metrics:
    """The worker's prompts, once a second and when some begin or end.

    Attributes:
        queued, in_flight: prompts that wait, and that a model works on.
        done: prompts with a result; includes ``failed`` and ``cached``.
        failed_calls: how the failed ones failed, as ``RunResult.failed_calls``.
        usage: of the worker.
        cost_usd: dollars of both models; None if a price is unknown.
        supervisor_cost_usd, worker_cost_usd: the same of each.
        left: the limits minus what was spent; None without limits.
    """

    queued: int = 0
    in_flight: int = 0
    done: int = 0
    failed: int = 0
    cached: int = 0
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = 0.0
    supervisor_cost_usd: float | None = 0.0
    worker_cost_usd: float | None = 0.0
    failed_calls: Mapping[FailedCall, int] = field(default_factory=dict[FailedCall, int])
    left: Remaining | None = None


@dataclass(frozen=True, slots=True)
class Retrying:
    """A request to a model failed and will be sent again.

    The log's ``retries`` counts them for each call. Attempts inside a model server are not seen.

    Attributes:
        seconds: the wait before that.
        attempt: the number of the next attempt, from 2.
        attempts: the most that are made.
    """

    role: ModelRole
    reason: RetryReason
    seconds: float
    attempt: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Warned:
    """Something went wrong, and the run goes on; ``text`` is also in ``RunResult.warnings``."""

    text: str


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run ended; ``result`` is None if it was cancelled or failed."""

    run_id: str
    how: Literal["result", "cancelled", "failed"]
    result: RunResult | None


Event = (
    RunStarted
    | TurnStarted
    | SupervisorWrote
    | SupervisorReplied
    | BlockStarted
    | BlockEnded
    | Metrics
    | Retrying
    | Warned
    | RunEnded
)
