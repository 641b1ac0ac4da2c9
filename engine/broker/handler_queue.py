"""The queues of one handler: one a run, with shared slots and deadlines."""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ...handlers import Completion, Message, ModelHandler, Retry, Unavailable, call_chat
from ...handlers.retries import listen_in_this_task

# "not_here": drop it from this queue; it was answered, or another run sends it.
Admission = Literal["now", "later", "not_here"]
Answers = Sequence[Completion | Exception]

_NEVER = math.inf

# A task sends one request after another for so long, then lets others run.
_TURN_SECONDS = 0.005

# Reporting a refusal takes time. A refused flood must not block the event loop.
_DROPPED_AT_ONCE = 64


class CallTimeout(Unavailable):
    """No answer came before the deadline of the request."""


@dataclass(eq=False, slots=True)
class Request(ABC):
    """One conversation on its way to a model. Times are monotonic.

    Attributes:
        seconds: deadline after sending.
        is_conditional: whether to call ``admit``.
        prompt: the user's text, if it is all.
        queue: None at its end.
    """

    seconds: float | None = None
    is_conditional: bool = True
    prompt: str = ""
    queued: float = field(default_factory=time.monotonic, init=False)
    started: float | None = field(default=None, init=False)
    queue: RequestQueue | None = field(default=None, init=False)
    has_slot: bool = field(default=False, init=False)
    call: HandlerCall | None = field(default=None, init=False)

    def conversation(self) -> Sequence[Message]:
        """Make the messages when they are sent."""
        return [{"role": "user", "content": self.prompt}]

    def admit(self) -> Admission:
        """Return whether to send it now. Must not raise."""
        return "now"

    def note_retry(self, retry: Retry) -> None:
        """Take the news that it will be sent again. Must not raise."""
        return

    @abstractmethod
    def finish(self, answer: Completion | Exception) -> None:
        """Take the answer. Must not raise."""


class RequestQueue:
    """The requests of one run; ``running`` of them are with the handler."""

    def __init__(self, handler_queue: HandlerQueue) -> None:
        self._handler_queue = handler_queue
        self._waiting: deque[Request] = deque()
        # Cancelled requests stay in ``_waiting`` until their turn: removing each would be O(n).
        self._cancelled = 0
        self._admits_each = False
        self.running = 0

    def __len__(self) -> int:
        return len(self._waiting) - self._cancelled

    def put(self, requests: Sequence[Request]) -> None:
        """Add requests and start those with a slot."""
        for request in requests:
            request.queue = self
        self._waiting.extend(requests)
        self._handler_queue.add_queue(self)
        self._handler_queue.start_ready()

    def cancel(self, requests: Sequence[Request]) -> None:
        """Cancel requests, waiting or sent."""
        for request in requests:
            if request.queue is None:
                continue
            request.queue = None
            if not request.has_slot:
                self._cancelled += 1
                continue
            self.running -= 1
            if request.call is not None:
                request.call.cancel_one()
        if self._cancelled > len(self):
            self._waiting = deque(request for request in self._waiting if request.queue is not None)
            self._cancelled = 0
        self._handler_queue.start_ready()

    def admit_each(self) -> None:
        """Call ``admit`` of all requests from now on, conditional or not."""
        self._admits_each = True
        self._handler_queue.schedule_start()

    def retry(self) -> None:
        """Try again to admit waiting requests."""
        self._handler_queue.schedule_start()

    def take_admitted(self, most: int) -> list[Request]:
        """Remove and return at most ``most`` requests that are admitted now."""
        taken: list[Request] = []
        dropped = 0
        while self._waiting and len(taken) < most:
            request = self._waiting.popleft()
            if request.queue is None:
                self._cancelled -= 1
                continue
            admission = request.admit() if request.is_conditional or self._admits_each else "now"
            if admission == "now":
                request.has_slot = True
                taken.append(request)
                continue
            if admission == "later":
                # It keeps its place: later requests must not overtake it.
                self._waiting.appendleft(request)
                break
            request.queue = None
            dropped += 1
            if dropped == _DROPPED_AT_ONCE:
                self._handler_queue.schedule_start()
                break
        self.running += len(taken)
        return taken


class HandlerCall:
    """A task that calls the handler."""

    __slots__ = ("_active", "_task", "_timeout", "deadline", "is_stopped", "requests")

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._active = 0
        self._timeout: CallTimeout | None = None
        self.requests: list[Request] = []
        self.deadline = 0.0
        self.is_stopped = False

    def add(self, request: Request, now: float) -> bool:
        """Add a request unless it was cancelled."""
        if request.queue is None:
            return False
        request.call = self
        request.started = now
        self.requests.append(request)
        self._active += 1
        if request.seconds is None:
            self.deadline = _NEVER
        elif now + request.seconds > self.deadline:
            self.deadline = now + request.seconds
        return True

    def cancel_one(self) -> None:
        """Count one request as cancelled; stop the task if no other waits for it."""
        self._active -= 1
        if not self._active:
            self._stop()

    def time_out(self) -> None:
        """Stop the task at its deadline."""
        self.deadline = _NEVER
        seconds = max(request.seconds or 0.0 for request in self.requests)
        self._timeout = CallTimeout(f"no answer within {seconds:g} s")
        self._stop()

    def note_retry(self, retry: Retry) -> None:
        """Pass it on to a run that waits: of a batch, all is sent again or nothing is known."""
        waiting = next((request for request in self.requests if request.queue is not None), None)
        if waiting is not None:
            waiting.note_retry(retry)

    def _stop(self) -> None:
        self.is_stopped = True
        if self._task is not None:
            self._task.cancel()

    def finish(self, answers: Answers) -> None:
        """Deliver the answers."""
        requests, self.requests = self.requests, []
        self._active, self.deadline = 0, 0.0
        for request, answer in zip(requests, answers, strict=True):
            queue = request.queue
            if queue is None:  # it was cancelled
                continue
            request.queue = None
            queue.running -= 1
            request.finish(answer)

    def fail(self) -> None:
        """Fail the unanswered requests."""
        if self.requests:
            error = self._timeout or Unavailable("the handler cancelled the request")
            self.finish([error] * len(self.requests))


class HandlerQueue(ABC):
    """The slots of one handler, shared in turn by its queues."""

    def __init__(self, handler: ModelHandler) -> None:
        self._handler = handler
        self._queues: deque[RequestQueue] = deque()
        self._calls: set[HandlerCall] = set()
        # Requests that were taken and have not ended. Rises in ``_take_for_free_slots``. Falls once for each
        # request: when it was cancelled before its call, was answered, or its call is closed.
        self._slots_used: int = 0
        self._is_taking = False
        self._start_is_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = _NEVER

    def add_queue(self, queue: RequestQueue) -> None:
        """Add a queue until it is empty."""
        if len(queue) and queue not in self._queues:
            self._queues.append(queue)

    def start_ready(self) -> None:
        """Start requests while slots are free."""
        while taken := self._take_for_free_slots():
            self._start(taken)

    def schedule_start(self) -> None:
        """Call ``start_ready`` once in the loop's next turn."""
        if not self._start_is_scheduled:
            self._start_is_scheduled = True
            asyncio.get_running_loop().call_soon(self._start_scheduled)

    def _start_scheduled(self) -> None:
        self._start_is_scheduled = False
        self.start_ready()

    @abstractmethod
    def _free_slots(self) -> int: ...

    @abstractmethod
    def _start(self, taken: list[Request]) -> None: ...

    def _take_for_free_slots(self) -> list[Request]:
        # ``admit`` may call this again. The outer call then takes what the inner one would.
        if not self._queues or self._is_taking:
            return []
        self._is_taking = True
        try:
            most = self._free_slots()
            taken = self._take_in_rounds(most) if most > 0 else []
        finally:
            self._is_taking = False
        self._slots_used += len(taken)
        return taken

    def _take_in_rounds(self, most: int) -> list[Request]:
        # Equal shares, round after round, so that no run starves.
        taken: list[Request] = []
        share = max(1, most // max(1, len(self._queues)))
        passed = 0
        while self._queues and len(taken) < most and passed < len(self._queues):
            queue = self._queues[0]
            requests = queue.take_admitted(min(share, most - len(taken)))
            taken += requests
            if not len(queue):
                self._queues.popleft()
                continue
            self._queues.rotate(-1)
            passed = 0 if requests else passed + 1
        return taken

    def _open_call(self) -> HandlerCall:
        call = HandlerCall()
        listen_in_this_task(call.note_retry)
        self._calls.add(call)
        return call

    def _close_call(self, call: HandlerCall) -> None:
        # Runs however the task ends: without it, slots would be lost.
        self._calls.discard(call)
        if not self._calls:
            self._stop_timer()
        self._slots_used -= len(call.requests)
        call.fail()
        if self._queues:
            self.schedule_start()

    def _watch_deadline(self, call: HandlerCall) -> None:
        # One timer for all calls: a timer for each would be a fifth of what a request costs.
        if call.deadline >= self._timer_due:
            return
        self._stop_timer()
        self._timer_due = call.deadline
        wait = max(0.0, call.deadline - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(wait, self._end_late_calls)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_due = None, _NEVER

    def _end_late_calls(self) -> None:
        self._stop_timer()
        now = time.monotonic()
        for call in self._calls:
            if call.deadline <= now:
                call.time_out()
            self._watch_deadline(call)


class ChatQueue(HandlerQueue):
    """Calls ``chat`` once for each request."""

    # A task for each request would be most of the cost where the handler answers at once: a cache, a script.

    def __init__(self, handler: ModelHandler) -> None:
        super().__init__(handler)
        self._ready: deque[Request] = deque()

    def _free_slots(self) -> int:
        return self._handler.max_concurrency - self._slots_used

    def _start(self, taken: list[Request]) -> None:
        asyncio.get_running_loop().create_task(self._ask_in_turn())
        self._add_ready(taken)

    def _add_ready(self, taken: list[Request]) -> None:
        self._ready += taken
        if len(taken) > 1:
            asyncio.get_running_loop().create_task(self._ask_at_once())

    async def _ask_at_once(self) -> None:
        for _ in range(1, len(self._ready)):
            asyncio.get_running_loop().create_task(self._ask_in_turn())
        await self._ask_in_turn()

    # One task asks request after request. A second one waits behind it, and starts the rest as soon as the
    # handler makes the first task wait.
    async def _ask_in_turn(self) -> None:
        call, now = self._open_call(), time.monotonic()
        end = now + _TURN_SECONDS
        try:
            while self._ready:
                request = self._ready.popleft()
                if call.add(request, now):
                    self._watch_deadline(call)
                    answer: Completion | Exception
                    try:
                        answer = await call_chat(self._handler, request.conversation())
                    except Exception as error:
                        answer = error
                    call.finish((answer,))
                self._slots_used -= 1
                now = time.monotonic()
                # A handler may catch the cancellation of its task. The task must end all the same.
                if call.is_stopped or now > end:
                    return
                if not self._ready and self._queues:
                    self._add_ready(self._take_for_free_slots())
        finally:
            self._close_call(call)
