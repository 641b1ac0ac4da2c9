"""results.csv: a row an example, in the order of the sample.

Columns: those of ``COLUMNS``, then ``metric.<name>`` for each figure of the task, by name. ``references`` is a JSON
list. Where there is nothing to say a field is empty; True and False are ``1`` and ``0``. ``seconds`` is of the last
attempt; it and the answers of models apart, a repetition gives the same table.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence

from .layout import as_cell
from .records import Record, Tokens

_ROLES = ("supervisor", "worker", "judge")
_NUMBERS = ("calls", "input_tokens", "output_tokens", "cost_usd")

COLUMNS = (
    "index", "example", "document", "kind", "strategy", "supervisor_model", "worker_model", "judge_model",
    "query", "references", "answer", "score", "correct", "note", "steps", "stop_reason", "context_chars",
    *(f"{role}_{number}" for role in _ROLES for number in _NUMBERS),
    "seconds", "error_stage", "error_type", "error_message",
)  # fmt: skip


def table(records: Sequence[Record]) -> str:
    """The records as CSV with a header, line ends as RFC 4180 has them; lone surrogates are escaped.

    Text that a spreadsheet would compute begins with an apostrophe.
    """
    metrics = sorted({name for record in records for name in record.metrics})
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*COLUMNS, *(f"metric.{name}" for name in metrics)])
    for record in records:
        writer.writerow([_field(value) for value in _row(record, metrics)])
    return text.getvalue()


def _row(record: Record, metrics: Iterable[str]) -> Iterable[object]:
    error = record.error
    values: dict[str, object] = {
        **dict(record),
        "references": json.dumps(record.references, ensure_ascii=False),
        "seconds": round(record.seconds, 3),
        "error_stage": error and error.stage,
        "error_type": error and error.type,
        "error_message": error and error.message,
    }
    for role in _ROLES:
        values |= _tokens(role, getattr(record, role))
    return [*(values[column] for column in COLUMNS), *(record.metrics.get(name) for name in metrics)]


def _tokens(role: str, tokens: Tokens) -> dict[str, object]:
    numbers = (tokens.calls, tokens.input, tokens.output, tokens.cost_usd)
    return {f"{role}_{name}": number for name, number in zip(_NUMBERS, numbers, strict=True)}


def _field(value: object) -> object:
    match value:
        case None:
            return ""
        case bool():
            return int(value)
        case float():
            return f"{value:.9g}"
        case str():
            return as_cell(value)
        case _:
            return value
