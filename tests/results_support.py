"""What the tests of experiments' results share: folders of runs, written as the runner writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from supdist.tools.evals.records import CONFIG, RECORDS, Record, Tokens


def record(index: int, *, right: bool | None = True, score: float | None = None, **fields: Any) -> Record:
    """Make the record of an example that ended."""
    value = float(bool(right)) if score is None else score
    values: dict[str, Any] = {
        "index": index,
        "example": f"q{index}",
        "strategy": "supervisor",
        "query": f"question {index}",
        "references": ["yes"],
        "answer": "yes",
        "score": value,
        "correct": right,
        "metrics": {"f1": value},
        "steps": 3,
        "stop_reason": "final",
        "context_chars": 1000 * (index + 1),
        "supervisor_model": "maker/large",
        "worker_model": "maker/small",
        "supervisor": Tokens(calls=3, input=100, output=10, cost_usd=0.01),
        "worker": Tokens(calls=5, input=50, output=5, cost_usd=0.002),
        "seconds": 2.0,
    }
    return Record(**(values | fields))


def failed(index: int) -> Record:
    """Make the record of an example that failed."""
    error = {"stage": "run", "type": "Unavailable", "message": "no answer"}
    return record(index, error=error, right=None, answer=None, metrics={}, stop_reason=None).model_copy(
        update={"score": None}
    )


def write_run(folder: Path, records: Iterable[Record], *, planned: int | None = None, **config: Any) -> Path:
    """Write a run's folder."""
    lines = [each.model_dump_json() + "\n" for each in records]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORDS).write_text("".join(lines), encoding="utf-8")
    sample = [f"q{index}" for index in range(len(lines) if planned is None else planned)]
    settings = {"task": "qasper", "seed": 42, "provenance": {"data_hash": "d", "sample": sample}}
    (folder / CONFIG).write_text(json.dumps({**settings, **config}), encoding="utf-8")
    return folder
