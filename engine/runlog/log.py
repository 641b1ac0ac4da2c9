"""The logs of a run: supervisor.jsonl, worker.jsonl, repl.jsonl, appended and flushed as things happen.

Files are their owner's alone (mode 0600), and a link in the folder is not followed.

One event is one line of ASCII JSON, whatever is in it. Every event has ``run_id``, ``step`` (the
supervisor's turn, from 1; 0 before the first), ``timestamp`` (seconds since 1970, UTC) and ``event``. The context is stored once, beside the logs, and named by its hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple

from ...handlers import Completion, Message, Usage
from ...sandbox_image.text import KEEP_SURROGATES
from ..errors import LogError
from ..private_files import PrivateFolder
from ..sandbox import CellResult, Display
from ..sandbox.context import encode_context
from ..toolbox.toolbox import ToolUse


class Numbers(NamedTuple):
    """What one call of a model took.

    Attributes:
        usage: tokens and requests that were paid for.
        cost_usd: dollars; None where the price is unknown.
        queue_seconds: spent waiting for a slot, a rate limit or the budget.
        model_seconds: from the request to the answer.
        retries: attempts that failed before.
        cached: whether it came from the cache, or with an equal request that was under way.
    """

    usage: Usage = Usage()
    cost_usd: float | None = 0.0
    queue_seconds: float = 0.0
    model_seconds: float = 0.0
    retries: int = 0
    cached: bool = False


Stream = Literal["supervisor", "worker", "repl"]
STREAMS: tuple[Stream, ...] = ("supervisor", "worker", "repl")


def new_run_id() -> str:
    """A name for a run: when it began (UTC), and what no other has."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"


class RunLogger:
    """Writes a run's events. With no folder it writes nothing and costs nothing.

    Raises:
        LogError: by every method: the folder cannot be written, the disk is full. A run ends there, before
            it spends more.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, run_id: str) -> None:
        self._folder = folder
        self._run_id = run_id
        self._place: PrivateFolder | None = None
        self._files: dict[Stream, BinaryIO] = {}
        self._stack = ExitStack()
        self.step = 0

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
            # What could not be flushed was reported where it was written.
            if error is None:
                raise _log_error(self._folder, failed) from failed

    @property
    def is_on(self) -> bool:
        """Whether anything is written."""
        return self._folder is not None

    def start(self, query: str, context: object, settings: dict[str, Any]) -> None:
        """The first event: the question, the settings, and the context by its hash. All three files are tried."""
        if self._folder is None:
            return
        encoded = _Digest()
        encode_context(context, encoded)
        facts = {
            "file": self._store(encoded.sha256, context),
            "sha256": encoded.sha256,
            "bytes": encoded.size,
            "type": type(context).__name__,
        }
        self._write("supervisor", "run_start", query=query, context=facts, **settings)
        for stream in STREAMS[1:]:
            self._write(stream, "run_start")

    def supervisor(
        self, model: str, messages: Sequence[Message], completion: Completion, numbers: Numbers, purpose: str
    ) -> None:
        """A turn of the supervisor; ``messages`` are those that it had not seen before."""
        self._write(
            "supervisor",
            "supervisor",
            purpose=purpose,
            model=model,
            messages=list(messages),
            **_answer(completion),
            **_numbers(numbers),
        )

    def worker(
        self, model: str, numbers: Numbers, completion: Completion | None = None, **facts: object
    ) -> None:
        """A worker call that ended: with an answer, or with an ``error`` among the facts, and with what was ``told``
        of it to the code.
        """
        answer = {} if completion is None else _answer(completion)
        self._write("worker", "worker", model=model, **facts, **answer, **_numbers(numbers))

    def repl(self, code: str, result: CellResult) -> None:
        """A block and all that it wrote and showed; of images their sizes and hashes."""
        self._write(
            "repl",
            "cell",
            cell=result.cell,
            code=code,
            outcome=result.outcome.value,
            stdout=result.stdout,
            stderr=result.stderr,
            display=[_display(shown) for shown in result.display],
            truncated=result.truncated,
            error=None if result.error is None else _error(result),
            final=result.final,
            elapsed=result.elapsed,
            worker_wait=result.worker_wait,
            state_lost=result.state_lost,
            detail=result.detail,
        )

    def left_out(self, notes: Mapping[int, str]) -> None:
        """Messages of the conversation, by their numbers, that the supervisor is not sent any more, and what it is
        sent in their place; this log has them.
        """
        self._write("supervisor", "left_out", messages=list(notes), notes=list(notes.values()))

    def tool(self, use: ToolUse) -> None:
        """A call of a host tool that ended: with ``result``, or with ``error`` and a message."""
        self._write(
            "repl",
            "tool",
            tool=use.tool,
            cell=use.cell,
            call=use.call,
            args=use.args,
            kwargs=use.kwargs,
            elapsed=use.elapsed,
            **({"result": use.result} if use.error is None else {"error": use.error, "message": use.message}),
        )

    def end(self, **facts: object) -> None:
        """The last event: how the run ended."""
        self._write("supervisor", "run_end", **facts)

    def _write(self, stream: Stream, event: str, **fields: object) -> None:
        file = self._files.get(stream)
        if file is None:
            return
        head = {"event": event, "run_id": self._run_id, "step": self.step, "timestamp": time.time()}
        try:
            # ASCII with escapes: no line end, control byte or lone surrogate of anybody reaches the file.
            line = json.dumps({**head, **fields}, ensure_ascii=True, allow_nan=True)
            file.write(line.encode("ascii") + b"\n")
            file.flush()
        except OSError as error:
            raise _log_error(self._folder, error) from error

    def _store(self, sha256: str, context: object) -> str:
        """Write the context, unless it is there; the file's name."""
        assert self._place is not None
        suffix, write = _readable(context)
        name = f"context-{sha256[:16]}.{suffix}"
        try:
            if not self._place.is_own_file(name):
                with self._place.replacing(name) as file:
                    write(file)
        except OSError as error:
            raise _log_error(self._folder, error) from error
        return name


def _is_cut_off(file: BinaryIO) -> bool:
    """Whether the last line has no end: its run was killed while it wrote. The next one begins a line of its own."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read() != b"\n"


class _Digest:
    """Counts and hashes what is written into it."""

    def __init__(self) -> None:
        self.size = 0
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes | memoryview, /) -> None:
        self.size += len(data)
        self._hash.update(data)


def _readable(context: object) -> tuple[str, Callable[[BinaryIO], object]]:
    """A context as a person would keep it: text as it is, data as JSON, or as its repr where it is no JSON. The
    file's suffix, and what writes it.
    """
    if isinstance(context, str):
        return "txt", partial(encode_context, context)
    try:
        suffix, data = "json", json.dumps(context, indent=1).encode()
    except (TypeError, ValueError):
        suffix, data = "repr.txt", repr(context).encode("utf-8", KEEP_SURROGATES)
    return suffix, lambda file: file.write(data)


def _display(shown: Display) -> dict[str, object]:
    return {
        mime: form
        if isinstance(form, str)
        else {"bytes": len(form), "sha256": hashlib.sha256(form).hexdigest()}
        for mime, form in shown.data.items()
    }


def _error(result: CellResult) -> dict[str, str]:
    assert result.error is not None
    return {"type": result.error.type, "message": result.error.message, "traceback": result.error.traceback}


def _answer(completion: Completion) -> dict[str, object]:
    reasoning = {"reasoning": completion.reasoning} if completion.reasoning else {}
    return {"response": completion.text, "finish_reason": completion.finish_reason, **reasoning}


def _numbers(numbers: Numbers) -> dict[str, object]:
    usage = numbers.usage
    return {
        "usage": {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "calls": usage.calls,
        },
        "elapsed": numbers.queue_seconds + numbers.model_seconds,
        "queue_seconds": numbers.queue_seconds,
        "model_seconds": numbers.model_seconds,
        "cost_usd": numbers.cost_usd,
        "retries": numbers.retries,
        "cached": numbers.cached,
    }


def _log_error(folder: str | os.PathLike[str] | None, error: OSError) -> LogError:
    file = f" ({error.filename})" if error.filename else ""
    return LogError(
        f"cannot write the logs in {folder}: {error.strerror or error}{file}. Make room, or choose another log_dir"
    )
