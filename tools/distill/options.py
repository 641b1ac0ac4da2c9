"""Options of an export."""

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
    """What is exported. ``validation`` is a share of the documents, 0 to 1."""

    format: Format
    role: Role = "supervisor"
    per: Per = "run"
    filters: Filters = field(default_factory=Filters)
    validation: float = 0.1
    seed: int = 0
    max_pairs: int = 4

    def __post_init__(self) -> None:
        if self.format == "preference" and (self.role == "worker" or self.per == "turn"):
            raise TaskError("--format preference compares whole runs; leave out --role worker and --per turn")
