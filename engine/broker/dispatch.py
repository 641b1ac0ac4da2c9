"""Requests on their way to models: fair between those who make them, bounded, each cancelled for itself.

Every run (or client of a broker service) has a queue per handler. A handler has so many slots; each that becomes
free goes to the next queue in turn, so that a flood in one delays the others by no more than a slot's time.
Nothing here waits or polls: a queue is looked at when something is put in, and when something has ended.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Literal
from weakref import WeakValueDictionary

from anyio.lowlevel import RunVar

from ...handlers import Completion, Message, ModelHandler, Unavailable, call_chat, call_chat_batch

Admission = Literal["now", "later", "never"]

_NEVER = math.inf

_TURN_SECONDS = 0.005
"""For so long a task asks for one after another: others have their turn between them."""

_DROPPED_AT_ONCE = 64
"""To tell whoever asked takes time, too, of which a flood that is refused shall not have all at once."""


class CallTimeout(Unavailable):
    """A request that was not answered by its deadline."""


class Request(ABC):
    """A conversation that a model is to answer. Override what it should know of its own fate.

    Attributes:
        seconds: its deadline, counted from the moment it goes to the handler; None where there is none.
        queued: when it was put into its queue, on the monotonic clock.
        started: when it went to the handler; None as long as it waits.
        queue: whose it is; None once it has ended or was cancelled. This and what follows is the dispatcher's.
        is_taken: whether it has a slot.
        call: what it is with the handler in.
    """

    __slots__ = ("call", "is_taken", "queue", "queued", "seconds", "started")

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self.queued = time.monotonic()
        self.started: float | None = None
        self.queue: Queue | None = None
        self.is_taken = False
        self.call: _Call | None = None

    @abstractmethod
    def conversation(self) -> Sequence[Message]:
        """What is asked. Made when it is needed: of thousands that wait, none needs it."""

    def admit(self) -> Admission:
        """Whether it may go now; asked when a slot is free. ``never`` drops it: whoever says so has dealt with it.

        Like ``finish`` it must not raise: it is called on behalf of others.
        """
        return "now"

    @abstractmethod
    def finish(self, answer: Completion | Exception) -> None:
        """It has ended. Called once, unless it was cancelled before."""

    def end(self, answer: Completion | Exception) -> None:
        """The handler gave this; for the dispatcher."""
        queue = self.queue
        if queue is not None:  # else it was cancelled
            self.queue = None
            queue.running -= 1
            self.finish(answer)


class Queue:
    """The requests of one run for one handler, first come, first served.

    Attributes:
        running: how many of its requests are with the handler.
    """

    def __init__(self, lane: _Lane) -> None:
        self._lane = lane
        self._waiting: deque[Request] = deque()
        self._cancelled = 0  # of those that wait: they are passed over when their turn comes
        self.running = 0

    def __len__(self) -> int:
        return len(self._waiting) - self._cancelled

    def put(self, requests: Sequence[Request]) -> None:
        """Queue requests; those for which there is room start at once."""
        for request in requests:
            request.queue = self
        self._waiting.extend(requests)
        self._lane.enter(self)
        self._lane.pump()

    def cancel(self, requests: Sequence[Request]) -> None:
        """Forget requests: those that wait do not start, those under way are cancelled. None is finished."""
        for request in requests:
            if request.queue is None:
                continue
            request.queue = None
            if not request.is_taken:
                self._cancelled += 1
                continue
            self.running -= 1
            if request.call is not None:
                request.call.drop_one()
        if self._cancelled > len(self):
            self._waiting = deque(request for request in self._waiting if request.queue is not None)
            self._cancelled = 0
        self._lane.pump()

    def look_again(self) -> None:
        """What kept a request from being admitted may have changed."""
        self._lane.pump()

    def take(self, most: int) -> list[Request]:
        """The next requests, as far as they may go now; for the lane."""
        taken: list[Request] = []
        dropped = 0
        while self._waiting and len(taken) < most:
            request = self._waiting.popleft()
            if request.queue is None:
                self._cancelled -= 1
                continue
            admission = request.admit()
            if admission == "now":
                request.is_taken = True
                taken.append(request)
                continue
            if admission == "later":
                self._waiting.appendleft(request)
                break
            request.queue = None
            dropped += 1
            if dropped == _DROPPED_AT_ONCE:
                self._lane.pump_soon()
                break
        self.running += len(taken)
        return taken


_Answers = Sequence[Completion | Exception]


class _Call:
    """A task that asks the handler, and the requests that it has there now: it is cancelled with the last of them, or when
    they are late.
    """

    __slots__ = ("_late", "_task", "_wanted", "deadline", "is_stopped", "taken")

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._wanted = 0
        self._late: CallTimeout | None = None
        self.taken: list[Request] = []
        self.deadline = 0.0
        self.is_stopped = False

    def begin(self, request: Request, now: float) -> bool:
        """A request goes to the handler, unless it was cancelled since it was taken."""
        if request.queue is None:
            return False
        request.call = self
        request.started = now
        self.taken.append(request)
        self._wanted += 1
        if request.seconds is None:
            self.deadline = _NEVER
        elif now + request.seconds > self.deadline:
            self.deadline = now + request.seconds
        return True

    def drop_one(self) -> None:
        """One of them is not wanted any more."""
        self._wanted -= 1
        if not self._wanted:
            self._stop()

    def end_late(self) -> None:
        """Their time is up."""
        self.deadline = _NEVER
        seconds = max(request.seconds or 0.0 for request in self.taken)
        self._late = CallTimeout(f"no answer within {seconds:g} s")
        self._stop()

    def _stop(self) -> None:
        self.is_stopped = True
        if self._task is not None:
            self._task.cancel()

    def finish(self, answers: _Answers) -> None:
        """Hand over what the handler gave."""
        taken, self.taken = self.taken, []
        self._wanted, self.deadline = 0, 0.0
        for request, answer in zip(taken, answers, strict=True):
            request.end(answer)

    def lose(self) -> None:
        """They were broken off."""
        self.finish([self._late or Unavailable("the handler broke the request off")] * len(self.taken))


class Dispatcher:
    """The queues of one event loop."""

    def __init__(self) -> None:
        # By the handler's id: its lane keeps it alive, and the lane is kept by those who use it.
        self._lanes: WeakValueDictionary[int, _Lane] = WeakValueDictionary()

    @classmethod
    def here(cls) -> Dispatcher:
        """The running event loop's own, which all of its runs share."""
        try:
            return _shared.get()
        except LookupError:
            _shared.set(cls())
            return _shared.get()

    def queue(self, handler: ModelHandler) -> Queue:
        """A new queue for requests to this handler."""
        lane = self._lanes.get(id(handler))
        if lane is None:
            own_batch = type(handler).chat_batch is not ModelHandler.chat_batch
            lane = self._lanes[id(handler)] = _Batches(handler) if own_batch else _Singles(handler)
        return Queue(lane)


_shared: RunVar[Dispatcher] = RunVar("supdist dispatcher")


class _Lane(ABC):
    """The way to one handler: its slots, and the queues that want them, in turn."""

    def __init__(self, handler: ModelHandler) -> None:
        self._handler = handler
        self._ring: deque[Queue] = deque()
        self._calls: set[_Call] = set()
        self._busy: int = 0
        self._taking = False
        self._pump_due = False
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = _NEVER

    def enter(self, queue: Queue) -> None:
        """A queue wants a turn."""
        if len(queue) and queue not in self._ring:
            self._ring.append(queue)

    def pump(self) -> None:
        """Start what may start."""
        while taken := self._next():
            self._start(taken)

    def _next(self) -> list[Request]:
        """What may start now; it has its slots."""
        if self._taking:  # by somebody who is asked for admission: whoever asks comes back for it
            return []
        self._taking = True
        try:
            room = self._room()
            taken = self._take(room) if room > 0 else []
        finally:
            self._taking = False
        self._busy += len(taken)
        return taken

    @abstractmethod
    def _room(self) -> int:
        """How many requests may be taken now."""

    @abstractmethod
    def _start(self, taken: list[Request]) -> None:
        """Send these to the handler."""

    def _take(self, most: int) -> list[Request]:
        """As many of each queue, round after round."""
        taken: list[Request] = []
        share = max(1, most // max(1, len(self._ring)))
        not_now = 0
        while self._ring and len(taken) < most and not_now < len(self._ring):
            queue = self._ring[0]
            requests = queue.take(min(share, most - len(taken)))
            taken += requests
            if not len(queue):
                self._ring.popleft()
                continue
            self._ring.rotate(-1)
            not_now = 0 if requests else not_now + 1
        return taken

    def _open(self) -> _Call:
        """The current task is about to ask the handler."""
        call = _Call()
        self._calls.add(call)
        return call

    def _close(self, call: _Call) -> None:
        """The task is about to end, by itself or cancelled."""
        self._calls.discard(call)
        if not self._calls:
            self._silence()
        self._busy -= len(call.taken)
        call.lose()
        if self._ring:
            self.pump_soon()

    def pump_soon(self) -> None:
        """Look at the queues in the event loop's next turn: once for all that ask for it in this one."""
        if not self._pump_due:
            self._pump_due = True
            asyncio.get_running_loop().call_soon(self._pump_when_due)

    def _pump_when_due(self) -> None:
        self._pump_due = False
        self.pump()

    def _watch(self, call: _Call) -> None:
        """One timer watches over all: one for each would be a fifth of what a request costs."""
        if call.deadline >= self._alarm_at:
            return
        self._silence()
        self._alarm_at = call.deadline
        wait = max(0.0, call.deadline - time.monotonic())
        self._alarm = asyncio.get_running_loop().call_later(wait, self._end_late)

    def _silence(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm, self._alarm_at = None, _NEVER

    def _end_late(self) -> None:
        self._silence()
        now = time.monotonic()
        for call in self._calls:
            if call.deadline <= now:
                call.end_late()
            self._watch(call)


class _Singles(_Lane):
    """A handler that is asked one conversation at a time, many at once.

    A task for each would be most of what a request costs where the handler has its answer without waiting (a cache, a
    script, a model in this process). So one task asks for one after another. The one behind it has its turn as soon as it
    waits, and has all that are left asked at once.
    """

    def __init__(self, handler: ModelHandler) -> None:
        super().__init__(handler)
        self._ready: deque[Request] = deque()

    def _room(self) -> int:
        return self._handler.max_concurrency - self._busy

    def _start(self, taken: list[Request]) -> None:
        asyncio.get_running_loop().create_task(self._ask_in_turn())
        self._make_ready(taken)

    def _make_ready(self, taken: list[Request]) -> None:
        self._ready += taken
        if len(taken) > 1:
            asyncio.get_running_loop().create_task(self._ask_at_once())

    async def _ask_at_once(self) -> None:
        for _ in range(1, len(self._ready)):
            asyncio.get_running_loop().create_task(self._ask_in_turn())
        await self._ask_in_turn()

    async def _ask_in_turn(self) -> None:
        call, now = self._open(), time.monotonic()
        end = now + _TURN_SECONDS
        try:
            while self._ready:
                request = self._ready.popleft()
                if call.begin(request, now):
                    self._watch(call)
                    answer: Completion | Exception
                    try:
                        answer = await call_chat(self._handler, request.conversation())
                    except Exception as error:
                        answer = error
                    call.finish((answer,))
                self._busy -= 1
                now = time.monotonic()
                # Stopped, where the handler has caught its task's cancellation.
                if call.is_stopped or now > end:
                    return
                if not self._ready and self._ring:
                    self._make_ready(self._next())
        finally:
            self._close(call)


class _Batches(_Lane):
    """A handler with a ``chat_batch`` of its own: what waits goes together, up to its ``batch_size``.

    Where nothing is under way a batch waits ``batch_wait`` for company. A plain ``chat_batch`` is never called
    twice at once.
    """

    def __init__(self, handler: ModelHandler) -> None:
        super().__init__(handler)
        self._plain = not inspect.iscoroutinefunction(handler.chat_batch)
        self._timer: asyncio.TimerHandle | None = None

    def pump(self) -> None:
        """See ``_Lane.pump``."""
        wait = self._handler.batch_wait
        if not wait or self._busy or sum(map(len, self._ring)) >= self._handler.batch_size:
            self._pump_now()
        elif self._timer is None and self._ring:
            self._timer = asyncio.get_running_loop().call_later(wait, self._pump_now)

    def _pump_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().pump()

    def _room(self) -> int:
        if self._plain and self._busy:
            return 0
        return min(self._handler.batch_size, self._handler.max_concurrency - self._busy)

    def _start(self, taken: list[Request]) -> None:
        asyncio.get_running_loop().create_task(self._ask_together(taken))

    async def _ask_together(self, taken: list[Request]) -> None:
        call = self._open()
        try:
            now = time.monotonic()
            self._busy -= sum([not call.begin(request, now) for request in taken])
            if call.taken:
                self._watch(call)
                answers = await self._answers([request.conversation() for request in call.taken])
                self._busy -= len(call.taken)
                call.finish(answers)
        finally:
            self._close(call)

    async def _answers(self, conversations: list[Sequence[Message]]) -> _Answers:
        try:
            answers = await call_chat_batch(self._handler, conversations)
            if len(answers) != len(conversations):
                raise TypeError(  # noqa: TRY301 - as any other mistake of the handler
                    f"{type(self._handler).__name__}.chat_batch gave {len(answers)} results for {len(conversations)} conversations"
                )
        except Exception as error:
            return [error] * len(conversations)
        return answers
