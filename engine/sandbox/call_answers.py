"""Answers the calls of a guest's code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context

from ...sandbox_image import protocol
from ...sandbox_image.protocol import CallError
from ..errors import LocalProtocolError
from ..slices import SLICE, Steps, finish, in_slices, replace_surrogates, utf8_bytes
from ..toolbox.toolbox import ToolCalls
from .config import OnCall, WorkerCall
from .long_messages import encode_reply

_STOP_SECONDS = 10.0
_REPLY_BYTES = protocol.MAX_FRAME_BYTES - (1 << 20)


class CallAnswers:
    """Answers the calls of one guest, each in a task.

    Args:
        on_call: answers worker calls; None refuses them.
        send: sends a reply to the guest.
        send_pieces: sends a long reply, encoded.
        fail: takes an exception of ``on_call`` or of a tool's log.
    """

    def __init__(
        self,
        on_call: OnCall | None,
        tools: ToolCalls,
        send: Callable[[protocol.ToShim], None],
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

    def answer(self, call: protocol.Call | protocol.ToolCall, context: Context) -> None:
        """Start to answer a call, in a copy of the context variables of its cell."""
        answering = self._answer_worker(call) if isinstance(call, protocol.Call) else self._answer_tool(call)
        loop = asyncio.get_running_loop()
        if not self._tasks:
            self._since = loop.time()
        task = loop.create_task(answering, context=context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._answered)

    def seconds(self) -> float:
        """Return for how long calls have been under way in all."""
        now = asyncio.get_running_loop().time()
        return self._seconds + (now - self._since if self._tasks else 0.0)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._seconds += asyncio.get_running_loop().time() - self._since

    def cancel(self) -> None:
        """Cancel every call."""
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
            self._fail(error)
        else:
            self._send(reply)

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
                self._fail(error)
                return
        if sum(len(result) for result in results if isinstance(result, str)) <= SLICE:
            self._send(protocol.Reply(call.call, finish(_sendable(results))))
        else:
            self._send_pieces(await in_slices(_encode_long(call.call, results)))


def _check_results(results: Sequence[object], call: protocol.Call) -> None:
    if len(results) != len(call.prompts):
        raise LocalProtocolError(f"on_call gave {len(results)} results for {len(call.prompts)} prompts")
    for result in results:
        if not isinstance(result, (str, CallError)):
            raise LocalProtocolError(
                f"on_call gave a {type(result).__name__} where a str or a CallError belongs"
            )


def _encode_long(call: int, results: Sequence[str | CallError]) -> Steps[list[bytes]]:
    return (yield from encode_reply(call, (yield from _sendable(results))))


def _sendable(results: Sequence[str | CallError]) -> Steps[list[str | CallError]]:
    # A frame has a size, and carries no lone surrogates.
    room = _REPLY_BYTES
    sendable: list[str | CallError] = []
    for result in results:
        if not isinstance(result, str):
            sendable.append(result)
            continue
        text = result if result.isascii() else (yield from replace_surrogates(result))
        room -= len(text) if text.isascii() else (yield from utf8_bytes(text))
        yield
        if room < 0:
            sendable.append(CallError("unavailable", "the answer is too large to be passed on"))
        else:
            sendable.append(text)
    return sendable
