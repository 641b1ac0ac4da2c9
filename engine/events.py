"""What a run tells while it goes on: the values that ``on_event`` gets, in this order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..handlers import Usage
from .sandbox import CellResult, Isolation

if TYPE_CHECKING:
    from .result import RunResult


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The sandbox stands; nothing was spent yet."""

    run_id: str
    isolation: Isolation
    max_iterations: int


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The supervisor is asked."""

    step: int


@dataclass(frozen=True, slots=True)
class SupervisorReplied:
    """The supervisor answered; ``text`` is as untrusted as its code."""

    step: int
    text: str
    usage: Usage
    elapsed: float


@dataclass(frozen=True, slots=True)
class BlockStarted:
    """A block is executed: number ``block`` of ``blocks`` in its message."""

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
class WorkerProgress:
    """Worker calls began or ended: how many are in flight now, and what all calls of the run used."""

    in_flight: int
    done: int
    failed: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run is over. ``result`` is None where it was cancelled or failed."""

    run_id: str
    how: Literal["result", "cancelled", "failed"]
    result: RunResult | None


Event = RunStarted | TurnStarted | SupervisorReplied | BlockStarted | BlockEnded | WorkerProgress | RunEnded
