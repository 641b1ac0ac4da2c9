"""The queue of a handler that answers conversations in batches."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Sequence

from ...handlers import Message, ModelHandler, call_chat_batch
from .handler_queue import Answers, HandlerQueue, Request


class BatchQueue(HandlerQueue):
    """Calls ``chat_batch`` with the waiting requests."""

    def __init__(self, handler: ModelHandler) -> None:
        super().__init__(handler)
        self._is_sync = not inspect.iscoroutinefunction(handler.chat_batch)
        self._batch_timer: asyncio.TimerHandle | None = None

    def start_ready(self) -> None:
        """Start a batch now, or in ``batch_wait`` seconds."""
        wait = self._handler.batch_wait
        if not wait or self._slots_used or sum(map(len, self._queues)) >= self._handler.batch_size:
            self._start_now()
        elif self._batch_timer is None and self._queues:
            self._batch_timer = asyncio.get_running_loop().call_later(wait, self._start_now)

    def _start_now(self) -> None:
        if self._batch_timer is not None:
            self._batch_timer.cancel()
            self._batch_timer = None
        super().start_ready()

    def _free_slots(self) -> int:
        # A plain ``chat_batch`` runs in a thread, and need not be safe for several.
        if self._is_sync and self._slots_used:
            return 0
        return min(self._handler.batch_size, self._handler.max_concurrency - self._slots_used)

    def _start(self, taken: list[Request]) -> None:
        asyncio.get_running_loop().create_task(self._ask_together(taken))

    async def _ask_together(self, taken: list[Request]) -> None:
        call = self._open_call()
        try:
            now = time.monotonic()
            # A request that was cancelled meanwhile frees its slot.
            self._slots_used -= sum([not call.add(request, now) for request in taken])
            if call.requests:
                self._watch_deadline(call)
                answers = await self._answers([request.conversation() for request in call.requests])
                self._slots_used -= len(call.requests)
                call.finish(answers)
        finally:
            self._close_call(call)

    async def _answers(self, conversations: list[Sequence[Message]]) -> Answers:
        try:
            answers = await call_chat_batch(self._handler, conversations)
            if len(answers) != len(conversations):
                name = type(self._handler).__name__
                raise TypeError(  # noqa: TRY301 - handled like any other mistake of the handler
                    f"{name}.chat_batch returned {len(answers)} results"
                    f" for {len(conversations)} conversations"
                )
        except Exception as error:
            return [error] * len(conversations)
        return answers
