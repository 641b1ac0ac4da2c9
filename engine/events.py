"""The events that ``on_event`` receives during a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..handlers import Usage
from .sandbox import CellResult, Isolation

if TYPE_CHECKING:
    from .result import RunResult


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

    ``finish_reason`` is ``length`` if it was cut off at max_tokens.
    """

    step: int
    text: str
    usage: Usage
    elapsed: float
    finish_reason: str = "stop"


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
class Metrics:
    """The worker's prompts, once a second and when some begin or end.

    Attributes:
        queued, in_flight: prompts that wait, and that a model works on.
        done: prompts with a result; includes ``failed`` and ``cached``.
        usage: of the worker.
    cost_usd: dollars of both models; None if a price is unknown.
    """

    queued: int = 0
    in_flight: int = 0
    done: int = 0
    failed: int = 0
    cached: int = 0
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = 0.0


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
    | Warned
    | RunEnded
)
