"""Writes run logs: a line of ASCII JSON for each event."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import msgspec
from anyio import to_thread

from ...handlers import Completion, Message, Usage
from ...sandbox_image.text import KEEP_SURROGATES
from ..errors import LogError
from ..private_files import PrivateFolder
from ..result import RunResult
from ..sandbox import CallError, CellResult, Display
from ..sandbox.context import EncodedContext
from ..toolbox.toolbox import ToolUse
from .events import (
    SCHEMA_VERSION,
    STREAMS,
    Cell,
    CellError,
    ContextFacts,
    Event,
    ImageFacts,
    LeftOut,
    RunEnd,
    RunStart,
    Stream,
    StreamStart,
    SupervisorCall,
    ToolCall,
    WorkerCall,
)


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

    Raises:
        LogError: by every method, if the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        run_id: str,
        *,
        parent_run_id: str | None = None,
    ) -> None:
        # The supervisor's turn; it goes into each event.
        self.step = 0
        self._folder = folder
        self._run_id = run_id
        self._parent_run_id = parent_run_id
        self._place: PrivateFolder | None = None
        self._files: dict[Stream, BinaryIO] = {}
        self._stack = ExitStack()
        # Added to a monotonic time it gives a time since 1970; see events.py.
        self._epoch = time.time() - time.monotonic()

    def __enter__(self) -> RunLogger:
        if self._folder is not None:
            try:
                self._place = self._stack.enter_context(PrivateFolder.open(self._folder, create=True))
                for name in STREAMS:
                    file = self._stack.enter_context(self._place.append(f"{name}.jsonl"))
                    if _is_cut_off(file):
                        file.write(b"\n")
                    self._files[name] = file
            except OSError as error:
                self._stack.close()
                raise _log_error(self._folder, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stack.close()
        except OSError as failed:
            # A failed flush was already reported by the write before it.
            if error is None:
                raise _log_error(self._folder, failed) from failed

    @property
    def is_on(self) -> bool:
        """Whether anything is written."""
        return self._folder is not None

    async def start(self, query: str, context: EncodedContext | None, **settings: Any) -> None:
        """Store the context and write the first events; ``settings`` are fields of ``RunStart``."""
        if self._place is None or context is None:
            return
        # A thread, because 100 MB take a tenth of a second to hash; meanwhile the sandbox starts.
        facts = await to_thread.run_sync(self._store, self._place, context)
        head = self._head()
        head.update(schema_version=SCHEMA_VERSION, engine_version=version("supdist-engine"))
        self._write("supervisor", RunStart(**head, query=query, context=facts, **settings))
        for stream in STREAMS[1:]:
            self._write(stream, StreamStart(**head))

    def supervisor(
        self, model: str, messages: Sequence[Message], completion: Completion, stats: CallStats, purpose: str
    ) -> None:
        """Write a reply of the supervisor."""
        if self.is_on:
            call = self._call(model, stats, completion)
            self._write("supervisor", SupervisorCall(purpose=purpose, messages=list(messages), **call))

    def worker(
        self,
        model: str,
        stats: CallStats,
        prompt: WorkerPrompt,
        completion: Completion | None = None,
        failure: CallFailure | None = None,
    ) -> None:
        """Write a worker call that ended. A refusal has a completion and a failure."""
        if not self.is_on:
            return
        call = self._call(model, stats, completion)
        if failure is not None:
            told = failure.told
            call.update(error=told.code, told=told.message, message=failure.message)
        self._write("worker", WorkerCall(**msgspec.structs.asdict(prompt), **call))

    def repl(self, code: str, result: CellResult) -> None:
        """Write a block with its whole output."""
        if not self.is_on:
            return
        error = result.error
        event = Cell(
            **self._head(),
            cell=result.cell,
            code=code,
            outcome=result.outcome.value,
            stdout=result.stdout,
            stderr=result.stderr,
            display=[_display(shown) for shown in result.display],
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
        self._write("repl", event)

    def left_out(self, notes: Mapping[int, str]) -> None:
        """Write the notes that replace messages."""
        event = LeftOut(**self._head(), messages=list(notes), notes=list(notes.values()))
        self._write("supervisor", event)

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

    def end(self, result: RunResult) -> None:
        """Write the result as the last event."""
        fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
        self._write("supervisor", RunEnd(**{**self._head(), **fields}))

    def end_without_result(self, **facts: Any) -> None:
        """Write the last event of a run without a result."""
        self._write("supervisor", RunEnd(**self._head(), **facts))

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

    def _write(self, stream: Stream, event: Event) -> None:
        file = self._files.get(stream)
        if file is None:
            return
        try:
            file.write(_JSON.encode(_as_plain(event)).encode("ascii") + b"\n")
            file.flush()
        except OSError as error:
            raise _log_error(self._folder, error) from error

    def _store(self, folder: PrivateFolder, context: EncodedContext) -> ContextFacts:
        # The name has the hash, so a context that several runs share is stored once.
        with context.opened() as data:
            sha256 = hashlib.sha256(data).hexdigest()
            suffix, write = _readable(context.value, data)
            name = f"context-{sha256[:16]}.{suffix}"
            try:
                if not folder.is_own_file(name):
                    with folder.replacing(name) as file:
                        write(file)
            except OSError as error:
                raise _log_error(self._folder, error) from error
        return ContextFacts(file=name, sha256=sha256, bytes=context.size, type=type(context.value).__name__)


def _is_cut_off(file: BinaryIO) -> bool:
    # A killed run leaves a last line without an end, and the next event must not continue it.
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read() != b"\n"


def _readable(context: object, encoded: memoryview) -> tuple[str, Callable[[BinaryIO], object]]:
    # A person reads this file: text as it is, data as JSON, and what JSON cannot hold as its repr.
    if isinstance(context, str):
        return "txt", lambda file: file.write(encoded)
    try:
        suffix, data = "json", json.dumps(context, indent=1).encode()
    except (TypeError, ValueError):
        suffix, data = "repr.txt", repr(context).encode("utf-8", KEEP_SURROGATES)
    return suffix, lambda file: file.write(data)


def _display(shown: Display) -> dict[str, str | ImageFacts]:
    return {
        mime: form
        if isinstance(form, str)
        else ImageFacts(bytes=len(form), sha256=hashlib.sha256(form).hexdigest())
        for mime, form in shown.data.items()
    }


@cache
def _omitted(kind: type[msgspec.Struct]) -> list[tuple[str, object]]:
    return [
        (field.name, field.default)
        for field in msgspec.structs.fields(kind)
        if field.default is not msgspec.NODEFAULT
    ]


@cache
def _field_names(kind: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _as_plain(value: Any) -> dict[str, Any]:
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.asdict(value)
        for name, default in _omitted(type(value)):
            if fields[name] is default or fields[name] == default:
                del fields[name]
        tag = value.__struct_config__.tag
        return fields if tag is None else {"event": tag, **fields}
    names = _field_names(type(value))  # type: ignore[arg-type]  # mypy takes a class for unhashable here
    return {name: getattr(value, name) for name in names}


# Not msgspec's encoder: it refuses lone surrogates. Escapes keep control bytes of guests out of the file.
_JSON = json.JSONEncoder(ensure_ascii=True, allow_nan=True, default=_as_plain)


def _log_error(folder: str | os.PathLike[str] | None, error: OSError) -> LogError:
    file = f" ({error.filename})" if error.filename else ""
    return LogError(
        f"cannot write the logs in {folder}: {error.strerror or error}{file}. "
        "Make room, or choose another log_dir"
    )
