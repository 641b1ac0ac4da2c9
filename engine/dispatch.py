"""Requests on their way to models: fair between those who make them, bounded, each cancelled for itself.

Every run (or client of a broker service) has a queue per handler. A handler has so many slots; each that becomes
free goes to the next queue in turn, so that a flood in one delays the others by no more than a slot's time.
Nothing here waits or polls: a queue is looked at when something is put in, and when something has ended.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Literal, TypeVar
from weakref import WeakValueDictionary

from anyio.lowlevel import RunVar

from ..handlers import Completion, Message, ModelHandler, Unavailable, call_chat, call_chat_batch

T = TypeVar("T")

Admission = Literal["now", "later", "never"]


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
        self._running: set[Request] = set()

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
            if request in self._running:
                self._running.discard(request)
                self._lane.cancel(request)
        self._lane.pump()

    def look_again(self) -> None:
        """What kept a request from being admitted may have changed."""
        self._lane.pump()

    def take(self) -> Request | Literal["later", "never"]:
        """The next request, if it may go; for the lane."""
        request = next(iter(self._waiting))
        admission = request.admit()
        if admission == "later":
            return "later"
        self._waiting.pop(request, None)
        if admission == "never":
            return "never"
        self._running.add(request)
        return request

    def finish(self, request: Request, answer: Completion | Exception) -> None:
        """A request has its answer; for the lane."""
        if request in self._running:  # else it was cancelled
            self._running.discard(request)
            request.finish(answer)


_Taken = tuple[Queue, Request]


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
        self._busy = 0
        self._pumping = False

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
                now = time.monotonic()
                for _, request in taken:
                    request.started = now
                self._start(taken)
        finally:
            self._pumping = False

    @abstractmethod
    def cancel(self, request: Request) -> None:
        """A request that runs is not wanted any more."""

    @abstractmethod
    def _room(self) -> int:
        """How many requests may be taken now."""

    @abstractmethod
    def _start(self, taken: list[_Taken]) -> None:
        """Send these to the handler."""

    def _take(self, most: int) -> list[_Taken]:
        """One of each queue, round after round."""
        taken: list[_Taken] = []
        not_now = 0
        while self._ring and len(taken) < most and not_now < len(self._ring):
            queue = self._ring[0]
            if not len(queue):
                self._ring.popleft()
                continue
            request = queue.take()
            self._ring.rotate(-1)
            if request == "later":
                not_now += 1
            elif request != "never":
                not_now = 0
                taken.append((queue, request))
        return taken

    def _end(self, taken: Sequence[_Taken], answers: Sequence[Completion | Exception]) -> None:
        """What was taken has left the handler, with an answer each, or with none where it was cancelled."""
        self._busy -= len(taken)
        for (queue, request), answer in zip(taken, answers, strict=False):
            queue.finish(request, answer)
        self.pump()


class _Singles(_Lane):
    """A handler that is asked one conversation at a time, many at once."""

    def __init__(self, handler: ModelHandler) -> None:
        super().__init__(handler)
        self._tasks: dict[Request, asyncio.Task[Completion | Exception]] = {}
        self._timers: dict[Request, asyncio.TimerHandle] = {}
        self._late: set[Request] = set()

    def cancel(self, request: Request) -> None:
        """See ``_Lane.cancel``."""
        if request in self._tasks:  # else it has just ended
            self._tasks[request].cancel()

    def _room(self) -> int:
        return self._handler.max_concurrency - self._busy

    def _start(self, taken: list[_Taken]) -> None:
        loop = asyncio.get_running_loop()
        for queue, request in taken:
            task = self._tasks[request] = loop.create_task(self._ask(request.messages))
            task.add_done_callback(partial(self._ended, queue, request))
            if request.seconds is not None:  # cheaper than asyncio.timeout, of which there would be one each
                self._timers[request] = loop.call_later(request.seconds, self._end_late, request)

    async def _ask(self, messages: Sequence[Message]) -> Completion | Exception:
        try:
            return await call_chat(self._handler, messages)
        except Exception as error:
            return error

    def _end_late(self, request: Request) -> None:
        self._late.add(request)
        self._tasks[request].cancel()

    def _ended(self, queue: Queue, request: Request, task: asyncio.Task[Completion | Exception]) -> None:
        del self._tasks[request]
        timer = self._timers.pop(request, None)
        if timer is not None:
            timer.cancel()
        is_late = request in self._late
        self._late.discard(request)
        answers: list[Completion | Exception] = []
        if not task.cancelled():
            answers = [task.result()]
        elif is_late:
            answers = [_late(request.seconds)]
        self._end([(queue, request)], answers)


class _Batches(_Lane):
    """A handler with a ``chat_batch`` of its own: what waits goes together, up to its ``batch_size``.

    Where nothing is under way a batch waits ``batch_wait`` for company. A plain ``chat_batch`` is never called
    twice at once.
    """

    def __init__(self, handler: ModelHandler) -> None:
        super().__init__(handler)
        self._plain = not inspect.iscoroutinefunction(handler.chat_batch)
        self._tasks: dict[Request, tuple[asyncio.Task[Sequence[Completion | Exception]], set[Request]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def pump(self) -> None:
        """See ``_Lane.pump``."""
        wait = self._handler.batch_wait
        if not wait or self._busy or sum(map(len, self._ring)) >= self._handler.batch_size:
            self._pump_now()
        elif self._timer is None and self._ring:
            self._timer = asyncio.get_running_loop().call_later(wait, self._pump_now)

    def cancel(self, request: Request) -> None:
        """See ``_Lane.cancel``. A batch is cancelled with the last that wants something of it."""
        task, wanted = self._tasks.get(request, (None, set[Request]()))
        wanted.discard(request)
        if task is not None and not wanted:
            task.cancel()

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
        requests = [request for _, request in taken]
        task = asyncio.get_running_loop().create_task(self._ask(requests))
        wanted = set(requests)
        self._tasks.update((request, (task, wanted)) for request in requests)
        task.add_done_callback(partial(self._ended, taken))

    async def _ask(self, requests: list[Request]) -> Sequence[Completion | Exception]:
        limits = [request.seconds for request in requests if request.seconds is not None]
        seconds = max(limits) if len(limits) == len(requests) else None
        try:
            asked = call_chat_batch(self._handler, [request.messages for request in requests])
            answers = await _in_time(asked, seconds)
            if len(answers) != len(requests):
                raise TypeError(  # noqa: TRY301 - as any other mistake of the handler
                    f"{type(self._handler).__name__}.chat_batch gave {len(answers)} results for {len(requests)} conversations"
                )
        except Exception as error:
            return [error] * len(requests)
        return answers

    def _ended(self, taken: list[_Taken], task: asyncio.Task[Sequence[Completion | Exception]]) -> None:
        for _, request in taken:
            del self._tasks[request]
        self._end(taken, [] if task.cancelled() else task.result())


async def _in_time(work: Awaitable[T], seconds: float | None) -> T:
    """The result of ``work``, by a deadline that cannot be confused with a ``TimeoutError`` of its own."""
    if seconds is None:
        return await work
    clock = asyncio.timeout(seconds)
    try:
        async with clock:
            return await work
    except TimeoutError:
        if clock.expired():
            raise _late(seconds) from None
        raise


def _late(seconds: float | None) -> CallTimeout:
    return CallTimeout(f"no answer within {seconds:g} s")
