"""The events of a run log, one struct per event type.

Three files hold the events of a run: ``supervisor.jsonl``, ``worker.jsonl`` and ``repl.jsonl``. One line is one event.
README.md in this folder has a table of events and fields.

Times are seconds since 1970 (UTC). The writer reads the wall clock once, when it opens the log, and adds the monotonic
clock's advance to it. Differences between times of one run are therefore exact, even if somebody sets the wall clock.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, field

from ...handlers import Message, Usage
from ..result import CallTotals
from ..sandbox import Isolation
from ..sandbox.config import CallCode

SCHEMA_VERSION = 2
"""The version that the writer writes. The logs of engine 0.1 have no version and count as 1.

A new field or a new event type does not raise it: readers ignore unknown fields, and skip and count unknown types. A new
meaning of an existing field raises it. A reader refuses a run with a higher version than its own.
"""

Stream = Literal["supervisor", "worker", "repl"]
STREAMS: tuple[Stream, ...] = ("supervisor", "worker", "repl")


def _written_as_null() -> Any:
    # The writer omits a field that equals its default. A factory is no default, so null is written, as in schema 1.
    return field(default_factory=lambda: None)


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Fields of every event. A field that a line does not have is None.

    Attributes:
        run_id: the run. One folder can hold several runs, for example two attempts.
        step: turn of the supervisor, from 1; 0 before the first.
        timestamp: when the event was written.
        parent_run_id: the run that started this one as a sub-run.
    """

    run_id: str
    step: int
    timestamp: float
    parent_run_id: str | None = None


class StreamStart(Event, frozen=True, kw_only=True, tag="run_start"):
    """The first event of a run in ``worker.jsonl`` and ``repl.jsonl``.

    Attributes:
        schema_version: see ``SCHEMA_VERSION``.
        engine_version: version of supdist-engine.
    """

    schema_version: int = 1
    engine_version: str | None = None


class ContextFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The document of a run.

    Attributes:
        file: its file beside the logs.
        sha256: hash of the encoded bytes that the sandbox reads, in hexadecimal.
        bytes: number of these bytes.
        type: its Python type.
    """

    file: str
    sha256: str
    bytes: int | None = None
    type: str | None = None


class RunStart(StreamStart, frozen=True, kw_only=True, tag="run_start"):
    """The first event of a run in ``supervisor.jsonl``: the question, the context and the settings.

    Attributes:
        worker_model: None if the run has no worker.
        sandbox: fields of ``SandboxConfig``.
        tools: kind of each tool of the user, by name.
        strategy, window: of an eval's direct strategy, which has no loop settings.
    """

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
    strategy: str | None = None
    window: int | None = _written_as_null()


class ModelCall(Event, frozen=True, kw_only=True):
    """A call of a model that ended. The event type is the role: supervisor, worker or judge.

    Attributes:
        model: name of the model.
        usage: tokens and requests that were paid for.
        elapsed: ``queue_seconds`` plus ``model_seconds``.
        queue_seconds: wait for a slot, a rate limit or the budget.
        model_seconds: from the request to the answer.
        cost_usd: dollars; None if the price is unknown.
        retries: failed attempts before the answer; None if unknown.
        cached: whether the answer came from the cache, or from an equal request in flight.
        response: text of the answer; None if the call failed.
        finish_reason: why the answer ended: stop, length, refusal or other.
        reasoning: what the model thought aloud.
        error: code of the failure.
        queued_at: when the broker took the call.
        sent_at: when the handler sent the request. It is estimated: the handler reports its own wait at the end.
        first_token_at: when the first piece of a streamed answer came.
        done_at: when the answer or the failure came.
        token_ids, logprobs: tokens of the answer and their natural log-probabilities, if the handler reports them.
    """

    model: str
    usage: Usage
    elapsed: float
    queue_seconds: float
    model_seconds: float
    cost_usd: float | None
    retries: int | None
    cached: bool
    response: str | None = None
    finish_reason: str | None = None
    reasoning: str = ""
    error: CallCode | None = None
    queued_at: float | None = None
    sent_at: float | None = None
    first_token_at: float | None = None
    done_at: float | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the answer came to its end."""
        return self.error is None and self.finish_reason not in ("length", "refusal")


class SupervisorCall(ModelCall, frozen=True, kw_only=True, tag="supervisor"):
    """A reply of the supervisor.

    Attributes:
        purpose: turn, best_answer or direct.
        messages: those that the supervisor had not seen before.
    """

    purpose: str
    messages: list[Message]


class WorkerCall(ModelCall, frozen=True, kw_only=True, tag="worker"):
    """A prompt of a worker call with its answer or its failure.

    Attributes:
        cell, call: numbers of the cell and of the call in the sandbox.
        index: place of the prompt in its call, from 0.
        told: what the guest's code was told of the failure.
        message: the failure in the host's own words.
    """

    cell: int
    call: int
    index: int
    prompt: str
    told: str | None = None
    message: str | None = None


class JudgeCall(ModelCall, frozen=True, kw_only=True, tag="judge"):
    """A verdict of an eval's judge."""

    messages: list[Message]


class LeftOut(Event, frozen=True, kw_only=True, tag="left_out"):
    """Messages that the supervisor is not sent any more.

    Attributes:
        messages: their numbers in the conversation, from 0.
        notes: what is sent in the place of each.
    """

    messages: list[int]
    notes: list[str]


class RunEnd(Event, frozen=True, kw_only=True, tag="run_end"):
    """How a run ended. The fields are those of ``RunResult``; a run that failed has ``error`` instead.

    Attributes:
        stop_reason: as in ``RunResult``, or ``cancelled``; None if the run failed.
        error: type and message of the exception.
    """

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


class ImageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the log keeps of an image: its size and its hash in hexadecimal."""

    bytes: int
    sha256: str


class CellError(msgspec.Struct, frozen=True, kw_only=True):
    """The exception that left a block, as in ``CellResult.error``."""

    type: str
    message: str
    traceback: str


class Cell(Event, frozen=True, kw_only=True, tag="cell"):
    """A block that was executed. The fields are those of ``CellResult``.

    Attributes:
        code: the block.
        stdout, stderr, display: written by the guest and not shortened.
    """

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
    """A call of a host tool that ended.

    Attributes:
        cell, call: numbers of the cell and of the call in the sandbox.
        args, kwargs: None if the arguments could not be read.
        result: not set if the call failed.
        error, message: code of the failure, and the exception's text.
    """

    tool: str
    cell: int
    call: int
    args: list[Any] | None
    kwargs: dict[str, Any] | None
    elapsed: float
    result: Any = UNSET
    error: str | None = None
    message: str | None = None


SupervisorEvent: TypeAlias = RunStart | SupervisorCall | JudgeCall | LeftOut | RunEnd
WorkerEvent: TypeAlias = StreamStart | WorkerCall
ReplEvent: TypeAlias = StreamStart | Cell | ToolCall
