"""Writes run logs: a line of ASCII JSON for each event."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from types import TracebackType
from typing import Any, NamedTuple

import msgspec
from anyio import to_thread

from ...handlers import Completion, Message, Usage
from ...sandbox_image.text import counted
from ..errors import LogError
from ..result import RunResult
from ..sandbox import CallError, CellResult, Display
from ..sandbox.context import EncodedContext
from ..slices import SLICE
from ..toolbox.toolbox import ToolUse
from .contexts import store_context
from .events import (
    SCHEMA_VERSION,
    STREAMS,
    CacheFault,
    Cell,
    CellError,
    ContextFacts,
    Event,
    ImageFacts,
    LeftOut,
    LogFull,
    RunEnd,
    RunStart,
    Stream,
    StreamStart,
    SupervisorCall,
    ToolCall,
    WorkerCall,
)
from .files import LogFiles, Written, log_error

_ANSWER = frozenset({"response", "reasoning"})
# Of a block: more take a while to convert.
_MAX_DISPLAYS = 500


class CallTimes(NamedTuple):
    """Stages of a call, in seconds of ``time.monotonic()``; None if unknown."""

    queued: float | None = None
    sent: float | None = None
    first_token: float | None = None
    done: float | None = None


class CallStats(NamedTuple):
    """Figures of one call of a model, as in ``ModelCall``."""

    usage: Usage = Usage()
    cost_usd: float | None = 0.0
    queue_seconds: float = 0.0
    model_seconds: float = 0.0
    retries: int | None = 0
    cached: bool = False
    times: CallTimes = CallTimes()


class WorkerPrompt(msgspec.Struct, frozen=True):
    """A prompt and its place, as in ``WorkerCall``."""

    cell: int
    call: int
    index: int
    prompt: str


class CallFailure(NamedTuple):
    """A failure, as told to the guest, and in the host's own words."""

    told: CallError
    message: str | None = None


def new_run_id() -> str:
    """Return a unique name that sorts by time (UTC)."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"


class RunLogger:
    """Writes the events of one run; without a folder, nothing.

    ``Written`` is a task while an event with long values is being written, else None.

    Raises:
        LogError: by every method and task, if the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        run_id: str,
        *,
        parent_run_id: str | None = None,
        log_bytes: int | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        """Open nothing yet.

        Args:
            log_bytes: the most bytes of lines and blobs; None is no limit.
            warn: called with each warning.
        """
        # Why events of a run that has its answer are missing.
        self.failure: str | None = None
        # The supervisor's turn; it goes into each event.
        self.step = 0
        self._folder = folder
        self._run_id = run_id
        self._parent_run_id = parent_run_id
        self._show = warn or _ignore
        self.warnings: list[str] = []
        self._files = LogFiles(folder, log_bytes, self._report_full, self._report_off)
        # Added to a monotonic time it gives a time since 1970; see events.py.
        self._epoch = time.time() - time.monotonic()

    def __enter__(self) -> RunLogger:
        self._files.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def report_failure(self, error: LogError) -> None:
        """Note that an event could not be written after the run had its answer."""
        if self.failure is None:
            self.failure = str(error)
            self.warn(self.failure)

    def warn(self, text: str) -> None:
        """Keep a warning, and show it."""
        self.warnings.append(text)
        self._show(text)

    async def drain(self) -> None:
        """Wait until all events are written."""
        await self._files.drain()

    @property
    def is_on(self) -> bool:
        """Whether anything is written."""
        return self._folder is not None and not self._files.has_failed

    async def start(self, query: str, context: EncodedContext | None, **settings: Any) -> None:
        """Store the context and write the first events; ``settings`` are fields of ``RunStart``."""
        if not self.is_on or context is None:
            return
        # A thread, because 100 MB take a tenth of a second to hash; meanwhile the sandbox starts.
        try:
            facts = await to_thread.run_sync(self._store, context)
        except LogError as error:
            self._files.fail(error)
            return
        head = self._head()
        head.update(schema_version=SCHEMA_VERSION, engine_version=version("supdist-engine"))
        await self._write_whole("supervisor", RunStart(**head, query=query, context=facts, **settings))
        for stream in STREAMS[1:]:
            await self._write_whole(stream, StreamStart(**head))

    async def supervisor(
        self, model: str, messages: Sequence[Message], completion: Completion, stats: CallStats, purpose: str
    ) -> None:
        """Write a reply of the supervisor."""
        if self.is_on:
            call = self._call(model, stats, completion)
            await self._write_whole(
                "supervisor", SupervisorCall(purpose=purpose, messages=list(messages), **call)
            )

    async def supervisor_failed(
        self, model: str, messages: Sequence[Message], failure: CallFailure, stats: CallStats, purpose: str
    ) -> None:
        """Write a request to the supervisor that got no reply."""
        if self.is_on:
            call = self._call(model, stats, None)
            call.update(error=failure.told.code, message=failure.message)
            await self._write_whole(
                "supervisor", SupervisorCall(purpose=purpose, messages=list(messages), **call)
            )

    def worker(
        self,
        model: str,
        stats: CallStats,
        prompt: WorkerPrompt,
        completion: Completion | None = None,
        failure: CallFailure | None = None,
    ) -> Written:
        """Write a worker call that ended. A refusal has a completion and a failure."""
        if not self.is_on:
            return None
        call = self._call(model, stats, completion)
        if failure is not None:
            told = failure.told
            call.update(error=told.code, told=told.message, message=failure.message)
        event = WorkerCall(**msgspec.structs.asdict(prompt), **call)
        # An answer was paid for; equal calls that the cache answers cost nothing, so they could fill a disk.
        return self._write("worker", event, kept=() if stats.cached else _ANSWER)

    async def repl(self, code: str, result: CellResult) -> None:
        """Write a block with its whole output."""
        if not self.is_on:
            return
        error, shown = result.error, result.display
        is_long = len(shown) > _MAX_DISPLAYS or sum(map(_image_bytes, shown)) > SLICE
        # In a thread, which lets others run while it hashes.
        display = await to_thread.run_sync(_displays, shown) if is_long else _displays(shown)
        event = Cell(
            **self._head(),
            cell=result.cell,
            code=code,
            outcome=result.outcome.value,
            stdout=result.stdout,
            stderr=result.stderr,
            display=display,
            truncated=result.truncated,
            error=None
            if error is None
            else CellError(type=error.type, message=error.message, traceback=error.traceback),
            final=result.final,
            elapsed=result.elapsed,
            worker_wait=result.worker_wait,
            state_lost=result.state_lost,
            detail=result.detail,
        )
        await self._write_whole("repl", event)

    def left_out(self, notes: Mapping[int, str]) -> Written:
        """Write the notes that replace messages."""
        event = LeftOut(**self._head(), messages=list(notes), notes=list(notes.values()))
        return self._write("supervisor", event)

    def report_cache(self, unstored: int, error: str | None) -> None:
        """Write and show that paid answers are not in the cache, or, without an error, are again."""
        # The same disk may be full.
        with suppress(LogError):
            self._write("supervisor", CacheFault(**self._head(), unstored=unstored, error=error))
        if error is None:
            self.warn("the cache is written again; no paid answer is lost")
        else:
            self.warn(f"the cache cannot be used: {error}. Answers are kept in memory and tried again")

    def tool(self, use: ToolUse) -> None:
        """Write a call of a host tool."""
        outcome: dict[str, Any] = {"result": use.result}
        if use.error is not None:
            outcome = {"error": use.error, "message": use.message}
        event = ToolCall(
            **self._head(), tool=use.tool, cell=use.cell, call=use.call, args=use.args, kwargs=use.kwargs,
            elapsed=use.elapsed, **outcome,
        )  # fmt: skip
        self._write("repl", event)

    async def end(self, result: RunResult) -> None:
        """Write the result as the last event."""
        await self.drain()
        fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
        fields["warnings"] = list(result.warnings) or None
        await self._write_whole("supervisor", RunEnd(**{**self._head(), **fields}))

    def end_without_result(self, **facts: Any) -> Written:
        """Write the last event of a run without a result."""
        return self._write("supervisor", RunEnd(**self._head(), **facts))

    def _head(self) -> dict[str, Any]:
        return {
            "run_id": self._run_id,
            "step": self.step,
            "timestamp": self._epoch + time.monotonic(),
            "parent_run_id": self._parent_run_id,
        }

    def _call(self, model: str, stats: CallStats, completion: Completion | None) -> dict[str, Any]:
        call = self._head()
        call.update(
            model=model, usage=stats.usage, elapsed=stats.queue_seconds + stats.model_seconds,
            queue_seconds=stats.queue_seconds, model_seconds=stats.model_seconds, cost_usd=stats.cost_usd,
            retries=stats.retries, cached=stats.cached,
        )  # fmt: skip
        if completion is not None:
            call.update(
                response=completion.text,
                finish_reason=completion.finish_reason,
                reasoning=completion.reasoning,
            )
        for name, moment in stats.times._asdict().items():
            call[f"{name}_at"] = None if moment is None else self._epoch + moment
        return call

    def _write(self, stream: Stream, event: Event, kept: Collection[str] = ()) -> Written:
        return self._files.write(stream, event, kept)

    async def _write_whole(self, stream: Stream, event: Event) -> None:
        await self._files.wait(self._write(stream, event))

    def _report_full(self, log_bytes: int) -> None:
        self._write("supervisor", LogFull(**self._head(), log_bytes=log_bytes))
        self.warn(
            f"the logs have used their {counted(log_bytes, 'byte')} (log_bytes): "
            "long texts of code are cut from here"
        )

    def _report_off(self, error: LogError) -> None:
        self.failure = f"{error}. This run has no log from here"
        self.warn(self.failure)

    def _store(self, context: EncodedContext) -> ContextFacts:
        try:
            return store_context(self._files.folder, context)
        except OSError as error:
            raise log_error(self._folder, error) from error


def _displays(shown: Sequence[Display]) -> list[dict[str, str | ImageFacts]]:
    return [_display(each) for each in shown]


def _image_bytes(shown: Display) -> int:
    return sum(len(form) for form in shown.data.values() if isinstance(form, bytes))


def _display(shown: Display) -> dict[str, str | ImageFacts]:
    return {
        mime: form
        if isinstance(form, str)
        else ImageFacts(bytes=len(form), sha256=hashlib.sha256(form).hexdigest())
        for mime, form in shown.data.items()
    }


def _ignore(_: str) -> None:
    return None
