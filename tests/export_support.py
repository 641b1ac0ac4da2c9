"""Experiments of real runs with scripted models, in the folders that the tools read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support import SMALL_CONFIG

from supdist.engine import RunResult, arun
from supdist.handlers import HandlerError, ModelHandler, ScriptedHandler
from supdist.tools.evals.records import EXAMPLES, RECORDS, Failure, Record, Tokens


def shouting() -> ScriptedHandler:
    return ScriptedHandler(lambda messages: messages[-1]["content"].upper(), model="shouting")


class Experiment:
    """A folder as ``eval`` writes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True)
        self._index = 0

    def logs(self, example: str) -> Path:
        return self.folder / EXAMPLES / example

    async def run(
        self,
        example: str,
        replies: Iterable[str | HandlerError] | ScriptedHandler,
        *,
        worker: ModelHandler | None = None,
        alone: bool = False,
        score: float | None = 1.0,
        document: str = "",
        cost_usd: float | None = 0.0,
        **options: Any,
    ) -> RunResult:
        """Run and record an example; ``alone`` has no worker."""
        supervisor = replies if isinstance(replies, ScriptedHandler) else ScriptedHandler(replies)
        options = {
            "query": "why?",
            "context": "the document",
            "sandbox": SMALL_CONFIG,
            "cache": "off",
            **options,
        }
        result = await arun(
            supervisor=supervisor,
            worker=None if alone else worker or shouting(),
            log_dir=self.logs(example),
            **options,
        )
        self.record(
            example,
            document=document,
            score=score,
            answer=result.answer,
            steps=result.iterations,
            stop_reason=result.stop_reason,
            run_id=result.run_id,
            supervisor=Tokens(cost_usd=cost_usd),
            query=options["query"].encode("utf-8", "replace").decode(),
        )
        return result

    def record(self, example: str, **facts: Any) -> None:
        """Append a line to results.jsonl."""
        score = facts.get("score")
        fields: dict[str, Any] = {
            "index": self._index, "example": example, "strategy": "supervisor", "query": "why?",
            "references": [], "answer": None, "score": None,
            "correct": None if score is None else score >= 0.5, "steps": 0, "stop_reason": None,
            "context_chars": 0, "supervisor_model": "scripted", "worker_model": "shouting", "seconds": 0.0,
            **facts,
        }  # fmt: skip
        self._index += 1
        with open(self.folder / RECORDS, "a", encoding="utf-8") as file:
            file.write(Record(**fields).model_dump_json() + "\n")

    def failed(self, example: str) -> None:
        """Record an example whose run failed."""
        self.record(example, error=Failure(stage="run", type="Rejected", message="no such model"))


def read_lines(path: Path) -> list[Any]:
    """Read the lines of a JSONL file; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def both(folder: Path) -> list[Any]:
    """Read the lines of both sides of an export."""
    return [line for side in ("train", "validation") for line in read_lines(folder / f"{side}.jsonl")]
