"""The folder of a run of ``eval``, and its records.

::

    logs/<task>/<timestamp>/
    ├── config.json        settings, versions, seeds, the data's hash
    ├── results.jsonl      a ``Record`` a line
    ├── results.csv        the same in the order of the sample
    ├── cache.sqlite       answers that were paid for
    ├── .mark              the user's seal of config.json
    └── examples/<id>/     the run log
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from ...engine.private_files import is_there, open_file, read_line

CONFIG, RECORDS, TABLE, CACHE, EXAMPLES = (
    "config.json", "results.jsonl", "results.csv", "cache.sqlite", "examples",
)  # fmt: skip

MAX_CONFIG_BYTES = 64 << 20

# The second name is that of version 0.1.
STRATEGY_NAMES = AliasChoices("strategy", "arm")

# The loop; the loop without workers; one call with the document cut to the window; the builtin pair.
Strategy = Literal["supervisor", "no-worker", "direct", "builtin"]


# Bounds, because a file from somebody else must not break a table or a plot.
Count = Annotated[int, Field(ge=0, le=10**15)]
Amount = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Failure(BaseModel):
    """Why an example has no score."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Whether the run failed, or the scoring of its answer.
    stage: Literal["run", "score"]
    type: str
    message: str


class Tokens(BaseModel):
    """Calls, tokens and dollars of one role for an example."""

    # An answer that another attempt or example paid for counts once, so that a resumed run has equal counts.
    model_config = ConfigDict(extra="forbid", frozen=True)

    calls: Count = 0
    input: Count = 0
    output: Count = 0
    cached: Count = Field(default=0, description="answers that came from the cache")
    cost_usd: Amount | None = Field(default=0.0, description="dollars; None where a price is unknown")


def total(parts: Iterable[Tokens]) -> Tokens:
    """Return the sum; its dollars are None if a price is unknown."""
    each = list(parts)
    costs = [part.cost_usd for part in each if part.cost_usd is not None]
    return Tokens(
        calls=sum(part.calls for part in each),
        input=sum(part.input for part in each),
        output=sum(part.output for part in each),
        cached=sum(part.cached for part in each),
        cost_usd=round(sum(costs), 9) if len(costs) == len(each) else None,
    )


class Record(BaseModel):
    """One example that ended."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: Count = Field(description="its place in the sample")
    example: str = Field(description="the example's id")
    document: str = ""
    kind: str = ""
    strategy: Strategy = Field(validation_alias=STRATEGY_NAMES)
    query: str
    references: list[str]
    answer: str | None
    score: Share | None = Field(description="the task's main figure, 0 to 1; None where there is no score")
    correct: bool | None
    metrics: dict[str, Share] = Field(default_factory=dict[str, float])
    note: str = ""
    steps: Count = Field(description="turns of the supervisor; 1 of a direct call")
    stop_reason: str | None = Field(description="why the run ended; None where it failed")
    context_chars: Count = Field(description="characters of the document, as text")
    supervisor_model: str = ""
    worker_model: str = ""
    judge_model: str = ""
    supervisor: Tokens = Tokens()
    worker: Tokens = Tokens()
    judge: Tokens = Tokens()
    seconds: Amount
    run_id: str = ""
    error: Failure | None = None


def read_records(folder: Path) -> list[Record]:
    """Return the last record of each example, in the order of the sample."""
    return read_records_and_damage(folder)[0]


def read_records_and_damage(folder: Path) -> tuple[list[Record], int]:
    """Return the records, as ``read_records`` does, and the number of lines that are none."""
    found: dict[str, Record] = {}
    damaged = 0
    for line in _lines(folder / RECORDS):
        try:
            record = Record.model_validate_json(line.decode("utf-8-sig", "replace"))
        except ValidationError:
            # A run that goes on, or that was killed, has a last line without an end.
            damaged += line.endswith(b"\n") and not line.isspace()
        else:
            found[record.example] = record
    return sorted(found.values(), key=lambda record: record.index), damaged


def _lines(path: Path) -> Iterator[bytes]:
    if is_there(path):
        with open_file(path) as file:
            while line := read_line(file):
                yield line
