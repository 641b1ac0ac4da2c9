"""The events of a run log. README.md has a table of all fields.

``timestamp`` and ``…_at`` are seconds since 1970 (UTC); ``elapsed`` and ``…_seconds`` are durations.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, field

from ...handlers import Message, Usage
from ..result import CallTotals
from ..sandbox import Isolation
from ..sandbox.config import CallCode

# A new field or event type does not raise it; a new meaning of a field does. Logs of 0.1 count as 1.
SCHEMA_VERSION = 2

Stream = Literal["supervisor", "worker", "repl"]
STREAMS: tuple[Stream, ...] = ("supervisor", "worker", "repl")


def _written_as_null() -> Any:
    # The writer omits defaults. A factory is no default, so null is written, as in schema 1.
    return field(default_factory=lambda: None)


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """A long value: the event holds its beginning, ``blobs/<sha256>`` the whole if it is ``stored``."""

    # The field of the event, then keys and indexes.
    path: list[str | int]
    # UTF-8 of a text, or JSON of a field with many values, of which the event holds none.
    kind: Literal["text", "json"]
    bytes: int
    sha256: str
    stored: bool
    # Of a text.
    characters: int | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Fields of every event."""

    # One folder can hold several runs, for example two attempts.
    run_id: str
    # The supervisor's turn, from 1; 0 before the first.
    step: int
    timestamp: float
    # The run that started this one as a sub-run.
    parent_run_id: str | None = None
    cut: list[Cut] | None = None


class StreamStart(Event, frozen=True, kw_only=True, tag="run_start"):
    """The first event in ``worker.jsonl`` and ``repl.jsonl``."""

    schema_version: int = 1
    engine_version: str | None = None


class ContextFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The document of a run."""

    # Size and hash are of the encoded bytes that the sandbox reads, in hexadecimal.

    file: str
    sha256: str
    bytes: int | None = None
    type: str | None = None


class RunStart(StreamStart, frozen=True, kw_only=True, tag="run_start"):
    """The first event in ``supervisor.jsonl``: the settings."""

    query: str
    context: ContextFacts
    supervisor_model: str
    worker_model: str | None
    max_iterations: int | None = None
    output_limit: int | None = None
    worker_ctx_k: int | None = None
    max_seconds: float | None = _written_as_null()
    sandbox: dict[str, Any] | None = None
    tools: dict[str, str] | None = None
    # Of an eval's direct strategy, which has no settings of a loop.
    strategy: str | None = None
    window: int | None = _written_as_null()


class ModelCall(Event, frozen=True, kw_only=True):
    """A call of a model that ended. The event type is its role."""

    model: str
    usage: Usage
    elapsed: float
    # The wait for a slot, a rate limit or the budget.
    queue_seconds: float
    model_seconds: float
    cost_usd: float | None
    retries: int | None
    cached: bool
    response: str | None = None
    finish_reason: str | None = None
    reasoning: str = ""
    error: CallCode | None = None
    # The broker took the call; the handler sent it; the first piece of a stream came; the call ended.
    queued_at: float | None = None
    sent_at: float | None = None
    first_token_at: float | None = None
    done_at: float | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the answer is complete."""
        return self.error is None and self.finish_reason not in ("length", "refusal")


class SupervisorCall(ModelCall, frozen=True, kw_only=True, tag="supervisor"):
    """A reply of the supervisor, with the messages that are new to it."""

    purpose: str
    messages: list[Message]
    # Why there is no reply.
    message: str | None = None


class WorkerCall(ModelCall, frozen=True, kw_only=True, tag="worker"):
    """A prompt of a worker call."""

    cell: int
    call: int
    # Its place in the call, from 0.
    index: int
    prompt: str
    # The failure, as the guest was told, and in the host's own words.
    told: str | None = None
    message: str | None = None


class JudgeCall(ModelCall, frozen=True, kw_only=True, tag="judge"):
    """A verdict of an eval's judge."""

    messages: list[Message]


class LeftOut(Event, frozen=True, kw_only=True, tag="left_out"):
    """Messages that are not sent any more, by number, and their notes."""

    messages: list[int]
    notes: list[str]


class LogFull(Event, frozen=True, kw_only=True, tag="log_full"):
    """The log's budget is used up: from here texts of guests are cut, and nothing whole is stored."""

    log_bytes: int


class CacheFault(Event, frozen=True, kw_only=True, tag="cache_fault"):
    """Paid answers are not in the cache; with no ``error`` they are again."""

    unstored: int
    error: str | None = None


class RunEnd(Event, frozen=True, kw_only=True, tag="run_end"):
    """The end of a run, as in ``RunResult``, or its ``error``."""

    stop_reason: str | None = _written_as_null()
    error: str | None = None
    answer: str | None = _written_as_null()
    iterations: int | None = None
    supervisor_usage: Usage | None = None
    worker_usage: Usage | None = None
    elapsed: float | None = None
    isolation: Isolation | None = None
    cost_usd: float | None = _written_as_null()
    supervisor: CallTotals | None = None
    worker: CallTotals | None = None
    unstored_answers: int | None = None
    log_error: str | None = None
    warnings: list[str] | None = None
    worker_calls: int | None = None
    failed_calls: dict[str, int] | None = None
    failure: str | None = None


class ImageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Size of an image, and its hash in hexadecimal."""

    bytes: int
    sha256: str


class CellError(msgspec.Struct, frozen=True, kw_only=True):
    """As ``CellResult.error``."""

    type: str
    message: str
    traceback: str


class Cell(Event, frozen=True, kw_only=True, tag="cell"):
    """A block that was executed, with its ``CellResult``."""

    cell: int
    code: str
    outcome: str
    stdout: str
    stderr: str
    display: list[dict[str, str | ImageFacts]]
    truncated: bool
    error: CellError | None
    final: str | None
    elapsed: float
    worker_wait: float
    state_lost: bool
    detail: str


class ToolCall(Event, frozen=True, kw_only=True, tag="tool"):
    """A call of a host tool that ended."""

    tool: str
    cell: int
    call: int
    # None if the arguments could not be read.
    args: list[Any] | None
    kwargs: dict[str, Any] | None
    elapsed: float
    result: Any = UNSET
    error: str | None = None
    message: str | None = None


SupervisorEvent: TypeAlias = RunStart | SupervisorCall | JudgeCall | LeftOut | LogFull | CacheFault | RunEnd
WorkerEvent: TypeAlias = StreamStart | WorkerCall
ReplEvent: TypeAlias = StreamStart | Cell | ToolCall
