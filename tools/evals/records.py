"""What is kept of an experiment, and where: the folder that ``eval`` writes and that all else reads.

::

    logs/<task>/<timestamp>/
    ├── config.json        every setting, versions, seeds, the data's hash; models without their keys
    ├── results.jsonl      a ``Record`` a line, appended and flushed as examples end, in the order in which they end
    ├── results.csv        the same as a table, in the order of the sample, rewritten whole
    ├── cache.sqlite       answers that were paid for
    ├── .mark              by which the user who ran it knows config.json again
    └── examples/<id>/     supervisor.jsonl, worker.jsonl, repl.jsonl

Files are their owner's alone (mode 0600), and a link in the folder is not followed. ``results.jsonl`` is the authority. A last line that is cut off is an example that has not ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from ...engine.private_files import is_there, open_file

CONFIG, RECORDS, TABLE, CACHE, EXAMPLES = (
    "config.json", "results.jsonl", "results.csv", "cache.sqlite", "examples",
)  # fmt: skip

STRATEGY_NAMES = AliasChoices("strategy", "arm")
"""The setting's name in files, and the one that it had in version 0.1."""

Strategy = Literal["supervisor", "no-worker", "direct", "builtin"]
"""The full loop; the loop without workers; one call, the document cut to the window; the loop with the builtin pair."""


# What a table and a plot can be made of: a file may be anybody's.
Count = Annotated[int, Field(ge=0, le=10**15)]
Amount = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Failure(BaseModel):
    """Why an example has no score. ``stage`` is what failed: the run, or the judging of an answer that is there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: Literal["run", "score"]
    type: str
    message: str


class Tokens(BaseModel):
    """What one role's calls took, over an example.

    An answer that was paid for before, by an attempt that was interrupted or for another example, counts as it did
    then, once; so the numbers do not depend on interruptions and on what else was run.
    """

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
    """One example that ended. ``seconds`` and the costs apart, a repetition gives the same where the models do."""

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
    """The records of a run's folder in the order of the sample, the last one of each example.

    What cannot be read is left out: the last line of a run that is going on, or of one that was killed.
    """
    found = {record.example: record for record in _records(folder / RECORDS)}
    return sorted(found.values(), key=lambda record: record.index)


def _records(path: Path) -> Iterator[Record]:
    if not is_there(path):
        return
    with open_file(path) as lines:
        for line in lines:
            try:
                yield Record.model_validate_json(line.decode("utf-8", "replace"))
            except ValidationError:
                continue
