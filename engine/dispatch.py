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
from collections import OrderedDict, deque
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, Literal
from weakref import WeakValueDictionary

from anyio.lowlevel import RunVar

from ..handlers import Completion, Message, ModelHandler, Unavailable, call_chat, call_chat_batch

Admission = Literal["now", "later", "never"]

_NEVER = math.inf


class CallTimeout(Unavailable):
    """A request that was not answered by its deadline."""


class Request:
    """A conversation that a model is to answer. Override what it should know of its own fate.

    Attributes:
        messages: the conversation.
        seconds: its deadline, counted from the moment it goes to the handler; None where there is none.
        queued: when it was put into its queue, on the monotonic clock.
        started: when it went to the handler; None as long as it waits.
    """

    __slots__ = ("messages", "queued", "seconds", "started")

    def __init__(self, messages: Sequence[Message], seconds: float | None = None) -> None:
        self.messages = messages
        self.seconds = seconds
        self.queued = time.monotonic()
        self.started: float | None = None

    def admit(self) -> Admission:
        """Whether it may go now; asked when a slot is free. ``never`` drops it: whoever says so has dealt with it.

        Like ``finish`` it must not raise: it is called on behalf of others.
        """
        return "now"

    def finish(self, answer: Completion | Exception) -> None:
        """It has ended. Called once, unless it was cancelled before."""


class Queue:
    """The requests of one run for one handler, first come, first served."""

    def __init__(self, lane: _Lane) -> None:
        self._lane = lane
        self._waiting: OrderedDict[Request, None] = OrderedDict()
        self._running: dict[Request, _Sent] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many of its requests are with the handler."""
        return len(self._running)

    def put(self, requests: Sequence[Request]) -> None:
        """Queue requests; those for which there is room start at once."""
        self._waiting.update(dict.fromkeys(requests))
        self._lane.enter(self)
        self._lane.pump()

    def cancel(self, requests: Sequence[Request]) -> None:
        """Forget requests: those that wait do not start, those under way are cancelled. None is finished."""
        for request in requests:
            self._waiting.pop(request, None)
            sent = self._running.pop(request, None)
            if sent is not None:
                sent.drop_one()
        self._lane.pump()

    def look_again(self) -> None:
        """What kept a request from being admitted may have changed."""
        self._lane.pump()

    def take(self, most: int) -> list[Request]:
        """The next requests, as far as they may go now; for the lane."""
        taken: list[Request] = []
        while self._waiting and len(taken) < most:
            request = next(iter(self._waiting))
            admission = request.admit()
            if admission == "later":
                break
            self._waiting.pop(request, None)
            if admission == "now":
                taken.append(request)
        return taken

    def start(self, request: Request, sent: _Sent, now: float) -> None:
        """A request goes to the handler; for the lane."""
        request.started = now
        self._running[request] = sent

    def finish(self, request: Request, answer: Completion | Exception) -> None:
        """A request has its answer; for the lane."""
        if self._running.pop(request, None) is not None:  # else it was cancelled
            request.finish(answer)


_Taken = tuple[Queue, Request]
_Answers = Sequence[Completion | Exception]


class _Sent:
    """Requests that are with the handler in one task, which is cancelled with the last of them, or when it is late."""

    __slots__ = ("_late", "_wanted", "deadline", "taken", "task")

    def __init__(self, taken: list[_Taken], asking: Coroutine[Any, Any, _Answers]) -> None:
        loop, now = asyncio.get_running_loop(), time.monotonic()
        self.taken = taken
        self.task = loop.create_task(asking)
        seconds = max([_NEVER if request.seconds is None else request.seconds for _, request in taken])
        self.deadline = loop.time() + seconds
        self._wanted = len(taken)
        self._late: CallTimeout | None = None
        for queue, request in taken:
            queue.start(request, self, now)

    def drop_one(self) -> None:
        """One of them is not wanted any more."""
        self._wanted -= 1
        if not self._wanted:
            self.task.cancel()

    def end_late(self) -> None:
        """Its time is up."""
        self.deadline = _NEVER
        seconds = max(request.seconds or 0.0 for _, request in self.taken)
        self._late = CallTimeout(f"no answer within {seconds:g} s")
        self.task.cancel()

    def finish(self) -> None:
        """The task has ended: hand over what it brought."""
        answers: _Answers
        if self.task.cancelled():
            answers = [self._late or Unavailable("the handler broke the request off")] * len(self.taken)
        else:
            answers = self.task.result()
        for (queue, request), answer in zip(self.taken, answers, strict=True):
            queue.finish(request, answer)


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
        self._sent: set[_Sent] = set()
        self._busy = 0
        self._pumping = False
        self._pump_due = False
        self._alarm: asyncio.TimerHandle | None = None

    def enter(self, queue: Queue) -> None:
        """A queue wants a turn."""
        if len(queue) and queue not in self._ring:
            self._ring.append(queue)

    def pump(self) -> None:
        """Start what may start."""
        if self._pumping:  # somebody who was asked for admission put more in; that is seen to below
            return
        self._pumping = True
        try:
            while (room := self._room()) > 0 and (taken := self._take(room)):
                self._busy += len(taken)
                self._start(taken)
        finally:
            self._pumping = False

    @abstractmethod
    def _room(self) -> int:
        """How many requests may be taken now."""

    @abstractmethod
    def _start(self, taken: list[_Taken]) -> None:
        """Send these to the handler."""

    def _take(self, most: int) -> list[_Taken]:
        """As many of each queue, round after round."""
        taken: list[_Taken] = []
        share = max(1, most // max(1, len(self._ring)))
        not_now = 0
        while self._ring and len(taken) < most and not_now < len(self._ring):
            queue = self._ring[0]
            requests = queue.take(min(share, most - len(taken)))
            taken += [(queue, request) for request in requests]
            if not len(queue):
                self._ring.popleft()
                continue
            self._ring.rotate(-1)
            not_now = 0 if requests else not_now + 1
        return taken

    def _send(self, taken: list[_Taken], asking: Coroutine[Any, Any, _Answers]) -> None:
        sent = _Sent(taken, asking)
        self._sent.add(sent)
        self._watch(sent)
        sent.task.add_done_callback(partial(self._ended, sent))

    def _ended(self, sent: _Sent, _: asyncio.Task[_Answers]) -> None:
        self._busy -= len(sent.taken)
        self._sent.discard(sent)
        if not self._sent and self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        sent.finish()
        if self._ring and not self._pump_due:  # once for all that end in this turn of the event loop
            self._pump_due = True
            asyncio.get_running_loop().call_soon(self._pump_when_due)

    def _pump_when_due(self) -> None:
        self._pump_due = False
        self.pump()

    def _watch(self, sent: _Sent) -> None:
        """One timer watches over all: one for each would be a fifth of what a request costs."""
        if sent.deadline < (_NEVER if self._alarm is None else self._alarm.when()):
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = asyncio.get_running_loop().call_at(sent.deadline, self._end_late)

    def _end_late(self) -> None:
        self._alarm = None
        now = asyncio.get_running_loop().time()
        for sent in self._sent:
            if sent.deadline <= now:
                sent.end_late()
            self._watch(sent)


class _Singles(_Lane):
    """A handler that is asked one conversation at a time, many at once."""

    def _room(self) -> int:
        return self._handler.max_concurrency - self._busy

    def _start(self, taken: list[_Taken]) -> None:
        for each in taken:
            self._send([each], self._ask(each[1].messages))

    async def _ask(self, messages: Sequence[Message]) -> _Answers:
        try:
            return [await call_chat(self._handler, messages)]
        except Exception as error:
            return [error]


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

    def _start(self, taken: list[_Taken]) -> None:
        self._send(taken, self._ask([request.messages for _, request in taken]))

    async def _ask(self, conversations: list[Sequence[Message]]) -> _Answers:
        try:
            answers = await call_chat_batch(self._handler, conversations)
            if len(answers) != len(conversations):
                raise TypeError(  # noqa: TRY301 - as any other mistake of the handler
                    f"{type(self._handler).__name__}.chat_batch gave {len(answers)} results for {len(conversations)} conversations"
                )
        except Exception as error:
            return [error] * len(conversations)
        return answers
