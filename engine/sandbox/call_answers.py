"""Answers the calls of a guest's code."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from functools import partial
from typing import TypeAlias

from ...sandbox_image import protocol
from ...sandbox_image.protocol import CallError
from ..errors import LocalProtocolError
from ..slices import SLICE, Steps, finish, in_slices, replace_surrogates, utf8_bytes
from ..toolbox.toolbox import ToolCalls
from .answer_window import ANSWER_BYTES, PART_BYTES, AnswerWindow, Kind
from .config import OnCall, WorkerCall
from .long_messages import encode_reply

_STOP_SECONDS = 10.0
_TOO_LARGE = f"the answer is too large to be passed on: more than {ANSWER_BYTES >> 20} MiB"


_Call: TypeAlias = protocol.Call | protocol.ToolCall


class CallAnswers:
    """Answers the calls of one guest, each in a task, in turn if their answers are large.

    Args:
        on_call: answers worker calls; None refuses them.
        send: sends a reply to the guest; returns its bytes.
        send_pieces: sends a long reply, encoded.
        fail: takes an exception of ``on_call`` or of a tool's log.
    """

    def __init__(
        self,
        on_call: OnCall | None,
        tools: ToolCalls,
        send: Callable[[protocol.ToShim], int],
        send_pieces: Callable[[Sequence[bytes]], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self._on_call = on_call
        self._tools = tools
        self._send = send
        self._send_pieces = send_pieces
        self._fail = fail
        self._tasks: set[asyncio.Task[None]] = set()
        # The time with calls under way, until ``_since``.
        self._seconds = self._since = 0.0
        self._window = AnswerWindow()
        self._encoding = asyncio.Lock()
        self._was_read = asyncio.Event()
        # The shim bounds the pending calls.
        self._waiting: deque[tuple[_Call, Context]] = deque()

    def answer(self, call: _Call, context: Context) -> None:
        """Answer a call, in a copy of the context variables of its cell."""
        self._waiting.append((call, context))
        self._start_waiting()

    def taken(self, size: int) -> None:
        """Count bytes of replies that the guest has read."""
        self._window.taken(size)
        self._was_read.set()
        self._start_waiting()

    def seconds(self) -> float:
        """Return for how long calls have been under way in all."""
        now = asyncio.get_running_loop().time()
        return self._seconds + (now - self._since if self._tasks else 0.0)

    def _start_waiting(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            call, context = self._waiting[0]
            kind, count = _kind(call)
            reserved = self._window.expect(kind, count)
            if reserved is None:
                return
            self._waiting.popleft()
            answering = (
                self._answer_worker(call) if isinstance(call, protocol.Call) else self._answer_tool(call)
            )
            if not self._tasks:
                self._since = loop.time()
            task = loop.create_task(answering, context=context.copy())
            self._tasks.add(task)
            task.add_done_callback(partial(self._answered, reserved))

    def _answered(self, reserved: int, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._seconds += asyncio.get_running_loop().time() - self._since
        self._window.release(reserved)
        self._start_waiting()

    def cancel(self) -> None:
        """Cancel every call."""
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        """Cancel every call, and wait for its end."""
        tasks = list(self._tasks)
        self.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_SECONDS)

    async def _answer_tool(self, call: protocol.ToolCall) -> None:
        try:
            reply = await self._tools.answer(call)
        # A tool's own exception is in the reply. This is another, such as a full disk under the log.
        except Exception as error:
            self._fail_all(error)
            return
        self._learn(call, 0 if isinstance(reply.result, protocol.ToolFailure) else len(reply.result))
        await self._until_read()
        self._window.sent(self._send(reply))

    def _fail_all(self, error: Exception) -> None:
        self._waiting.clear()
        self._fail(error)

    async def _answer_worker(self, call: protocol.Call) -> None:
        results: Sequence[str | CallError]
        if self._on_call is None:
            results = [CallError("unavailable", "this sandbox has no worker")] * len(call.prompts)
        else:
            try:
                results = await self._on_call(WorkerCall(call.cell, call.call, call.prompts))
                _check_results(results, call)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # Not this task, but one that ``on_call`` awaits was cancelled. The guest needs a reply: its
                # clock stands still until then.
                results = [CallError("cancelled", "the call was cancelled")] * len(call.prompts)
            except Exception as error:
                self._fail_all(error)
                return
        self._learn(call, sum(map(sys.getsizeof, results)))
        if sum(len(result) for result in results if isinstance(result, str)) <= SLICE:
            await self._until_read()
            self._window.sent(self._send(protocol.Reply(call.call, finish(_sendable(results)))))
            return
        # One at a time: an encoded answer takes memory beside its text.
        async with self._encoding:
            for kind, part in _parts(results):
                await self._until_read()
                pieces = await in_slices(_encode_long(call.call, part, kind))
                self._send_pieces(pieces)
                self._window.sent(sum(map(len, pieces)))

    async def _until_read(self) -> None:
        # A guest that reads nothing for good is ended by its own clock, or by that of `execute()`.
        while not self._window.may_send:
            self._was_read.clear()
            await self._was_read.wait()

    def _learn(self, call: _Call, size: int) -> None:
        kind, count = _kind(call)
        self._window.learn(kind, count, size)


def _check_results(results: Sequence[object], call: protocol.Call) -> None:
    if len(results) != len(call.prompts):
        raise LocalProtocolError(f"on_call gave {len(results)} results for {len(call.prompts)} prompts")
    for result in results:
        if not isinstance(result, (str, CallError)):
            raise LocalProtocolError(
                f"on_call gave a {type(result).__name__} where a str or a CallError belongs"
            )


def _kind(call: _Call) -> tuple[Kind, int]:
    return ("worker", len(call.prompts)) if isinstance(call, protocol.Call) else ("tool", 1)


def _parts(
    results: Sequence[str | CallError],
) -> Iterator[tuple[type[protocol.Reply | protocol.ReplyPart], Sequence[str | CallError]]]:
    # Whole answers, each part as soon as it is large enough; the last is the reply.
    start = size = 0
    for end, result in enumerate(results, start=1):
        size += sys.getsizeof(result)
        if size >= PART_BYTES and end < len(results):
            yield protocol.ReplyPart, results[start:end]
            start, size = end, 0
    yield protocol.Reply, results[start:]


def _encode_long(
    call: int, results: Sequence[str | CallError], kind: type[protocol.Reply | protocol.ReplyPart]
) -> Steps[list[bytes]]:
    return (yield from encode_reply(call, (yield from _sendable(results)), kind))


def _sendable(results: Sequence[str | CallError]) -> Steps[list[str | CallError]]:
    # A message carries no lone surrogates, and has a size.
    sendable: list[str | CallError] = []
    for result in results:
        if not isinstance(result, str):
            sendable.append(result)
            continue
        text = result if result.isascii() else (yield from replace_surrogates(result))
        size = len(text) if text.isascii() else (yield from utf8_bytes(text))
        yield
        sendable.append(text if size <= ANSWER_BYTES else CallError("unavailable", _TOO_LARGE))
    return sendable
