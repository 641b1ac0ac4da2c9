"""Worker calls of a sandbox on their way to the worker model, and back as texts or typed errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..handlers import (
    BatchItem,
    Completion,
    ContextTooLong,
    HandlerError,
    Message,
    ModelHandler,
    Unavailable,
    Usage,
    all_or_none,
    call_chat,
    call_chat_batch,
)
from .events import WorkerProgress
from .log import RunLogger
from .sandbox import CallError, WorkerCall


class Broker:
    """Answers the calls of one run. What it tells a guest of a failure is its kind, never the model's or host's words."""

    def __init__(
        self, worker: ModelHandler, log: RunLogger, on_progress: Callable[[WorkerProgress], None]
    ) -> None:
        self._worker = worker
        self._log = log
        self._on_progress = on_progress
        self._in_flight = 0
        self._done = 0
        self._failed = 0
        self.usage = Usage()

    async def answer(self, call: WorkerCall) -> Sequence[str | CallError]:
        """Ask the worker each prompt of a call; the results in order. Errors take their places, and stop nothing."""
        self._count(begun=len(call.prompts))
        waiting = len(call.prompts)
        try:
            if len(call.prompts) > 1 and type(self._worker).chat_batch is not ModelHandler.chat_batch:
                results = await self._ask_together(call)
            else:
                results = await all_or_none([self._ask(call, index) for index in range(len(call.prompts))])
            waiting = 0
        finally:
            self._count(ended=len(call.prompts) - waiting, cancelled=waiting)
        return results

    async def _ask(self, call: WorkerCall, index: int) -> str | CallError:
        started = time.monotonic()
        item: BatchItem | Exception
        try:
            item = await call_chat(self._worker, _conversation(call.prompts[index]))
        except Exception as error:
            item = error
        return self._settle(call, index, item, time.monotonic() - started)

    async def _ask_together(self, call: WorkerCall) -> list[str | CallError]:
        started = time.monotonic()
        items: Sequence[BatchItem | Exception]
        try:
            items = await call_chat_batch(self._worker, [_conversation(prompt) for prompt in call.prompts])
            if len(items) != len(call.prompts):
                items = [
                    RuntimeError(
                        f"chat_batch gave {len(items)} results for {len(call.prompts)} conversations"
                    )
                ]
                items *= len(call.prompts)
        except Exception as error:
            items = [error] * len(call.prompts)
        elapsed = time.monotonic() - started
        return [self._settle(call, index, item, elapsed) for index, item in enumerate(items)]

    def _settle(
        self, call: WorkerCall, index: int, item: BatchItem | Exception, elapsed: float
    ) -> str | CallError:
        """Count, log and translate one result."""
        where = {"cell": call.cell, "call": call.call, "index": index, "prompt": call.prompts[index]}
        if isinstance(item, Completion):
            self.usage += item.usage
            self._log.worker(
                model=self._worker.model,
                usage=item.usage,
                elapsed=elapsed,
                **where,
                response=item.text,
                finish_reason=item.finish_reason,
            )
            if item.finish_reason != "refusal":
                return item.text
            self._failed += 1
            return CallError("refused", "the worker refused to answer")
        error = _call_error(item)
        self._failed += 1
        words = f"{type(item).__name__}: {item}"
        self._log.worker(
            model=self._worker.model, usage=Usage(), elapsed=elapsed, **where, error=error.code, message=words
        )
        return error

    def _count(self, *, begun: int = 0, ended: int = 0, cancelled: int = 0) -> None:
        self._in_flight += begun - ended - cancelled
        self._done += ended
        self._on_progress(WorkerProgress(self._in_flight, self._done, self._failed, self.usage))


def _conversation(prompt: str) -> list[Message]:
    return [{"role": "user", "content": prompt}]


def _call_error(error: Exception) -> CallError:
    if isinstance(error, ContextTooLong):
        return CallError("too_long", "the prompt does not fit the worker's window")
    if isinstance(error, Unavailable) or not isinstance(error, HandlerError):
        return CallError("unavailable", "the worker could not be reached, or failed")
    return CallError("refused", "the worker's endpoint refused the request")
