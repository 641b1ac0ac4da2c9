"""A task of the tests: find a code in a list of codes. The score is exact match or a judge's verdict.

A process knows the task if its path has ``entry_point``. A sample example::

    Example(id="item-3", query="What is the code of item-3?", references=("1047",))
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supdist.tasks.base import Ask, Example, JudgeError, Score, Task


@dataclass(frozen=True)
class Lookup(Task):
    """``size`` examples; ``salt`` makes other data."""

    name = "lookup"
    size: int = 20
    salt: str = ""
    judged: bool = False

    @property
    def wants_judge(self) -> bool:
        return self.judged

    def code(self, number: int) -> str:
        digest = hashlib.sha256(f"{self.salt}{number}".encode()).digest()
        return str(1000 + int.from_bytes(digest[:2], "big"))

    def examples(self) -> Sequence[Example]:
        return [
            Example(
                id=f"item-{number}",
                query=f"What is the code of item-{number}?",
                references=(self.code(number),),
                document=f"list-{number % 4}",
                kind="even" if number % 2 == 0 else "odd",
            )
            for number in range(self.size)
        ]

    def context(self, example: Example) -> str | list[Any] | dict[str, Any]:
        lines = [f"The code of item-{number} is {self.code(number)}." for number in range(self.size)]
        return f"{example.document}\n" + "\n".join(lines)

    async def score(self, example: Example, answer: str | None, judge: Ask | None = None) -> Score:
        found = answer is not None and example.references[0] in answer
        if judge is None:
            return Score(float(found), found, {"exact": float(found)})
        reply = await judge([{"role": "user", "content": f"Is {answer} right for {example.references[0]}?"}])
        if reply.text not in ("yes", "no"):
            raise JudgeError(f"no verdict: {reply.text}")
        right = reply.text == "yes"
        return Score(float(found), right, {"exact": float(found), "judge": float(right)}, note="as asked")

    def data_hash(self) -> str:
        return hashlib.sha256(f"{self.size} {self.salt}".encode()).hexdigest()


def entry_point(folder: Path) -> Path:
    """Write a folder that registers the task, as an installed package does, and return it."""
    info = folder / "lookup_task-1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lookup-task\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[supdist_engine.tasks]\nlookup = lookup_task:Lookup\n")
    return folder


def python_path(folder: Path) -> str:
    """Return a PYTHONPATH with which a child process knows the task; writes below the folder."""
    return os.pathsep.join([str(entry_point(folder / "installed")), str(Path(__file__).parent)])
