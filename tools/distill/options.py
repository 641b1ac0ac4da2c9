"""What an export is to hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ...engine.errors import TaskError
from .selection import Filters

Format = Literal["sft", "preference"]
Role = Literal["supervisor", "worker"]
Per = Literal["run", "turn"]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What is exported.

    Attributes:
        format: conversations to learn from, or pairs of a better and a worse one.
        role: whose turns they are; of the worker there is ``sft`` alone.
        per: what a line of the supervisor's ``sft`` tells: a run as one conversation, or a turn with its request.
        filters: which runs.
        validation: the part of the documents that are to validate with, 0 to 1.
        seed: of the split.
        max_pairs: pairs of one question at most.
    """

    format: Format
    role: Role = "supervisor"
    per: Per = "run"
    filters: Filters = field(default_factory=Filters)
    validation: float = 0.1
    seed: int = 0
    max_pairs: int = 4

    def __post_init__(self) -> None:
        if self.format == "preference" and (self.role == "worker" or self.per == "turn"):
            raise TaskError("preference pairs whole runs: leave out --role worker and --per turn")
