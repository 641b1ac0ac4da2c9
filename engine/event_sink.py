"""Passes the events of a run to its caller and to Python's ``logging``."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from ..sandbox_image.text import one_line
from .events import (
    BlockEnded,
    Event,
    Metrics,
    Retrying,
    RunEnded,
    RunStarted,
    SupervisorWrote,
    TurnStarted,
    Warned,
)

# Called in the event loop; what it returns is awaited.
OnEvent = Callable[[Event], object]

# An async function may need so long for the last events of a run.
_LAST_SECONDS = 10.0

_logger = logging.getLogger("supdist.run")


# Only the newest of them counts.
_NEWEST = (Metrics, Retrying)


def _kind(event: Event) -> str:
    return event.role if isinstance(event, Retrying) else type(event).__name__


class EventQueue:
    """Events that wait for their reader.

    A newer ``Metrics`` or ``Retrying`` replaces one that waits. Else a slow reader's queue would grow with
    each worker call.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._has_news = asyncio.Event()
        self._is_closed = False

    def put(self, event: Event) -> None:
        """Add an event."""
        if not self._replace(event):
            self._events.append(event)
        self._has_news.set()

    def _replace(self, event: Event) -> bool:
        place = len(self._events)
        # At most one of each kind stands there, so the search is short.
        while isinstance(event, _NEWEST) and place and isinstance(self._events[place - 1], _NEWEST):
            place -= 1
            if _kind(self._events[place]) == _kind(event):
                self._events[place] = event
                return True
        return False

    def close(self) -> None:
        """Let ``get`` return None once all events are read."""
        self._is_closed = True
        self._has_news.set()

    async def get(self) -> Event | None:
        """Wait for the next event; return None at the end."""
        while not self._events:
            if self._is_closed:
                return None
            self._has_news.clear()
            await self._has_news.wait()
        return self._events.popleft()


class EventSink:
    """Passes each event of a run on, in order. An error of ``on_event`` costs that event, not the run."""

    def __init__(self, run_id: str, on_event: OnEvent | None) -> None:
        self._run_id = run_id
        self._on_event = on_event
        self._first: Exception | None = None
        self._lost = 0
        # Only for an async function.
        self._queue: EventQueue | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def failure(self) -> str:
        """What ``on_event`` raised, in plain words; empty if nothing."""
        if self._first is None:
            return ""
        what = f"{type(self._first).__name__}: {one_line(str(self._first))}"
        return f"on_event raised {what} (events lost: {self._lost:,})"

    def emit(self, event: Event) -> None:
        """Log an event, and pass it on."""
        _log(self._run_id, event)
        if self._queue is not None:
            self._queue.put(event)
        elif self._on_event is not None:
            result = self._pass_on(event)
            # An async function: a task awaits it, and takes all later events from a queue.
            if inspect.isawaitable(result):
                self._queue = EventQueue()
                self._task = asyncio.ensure_future(self._serve(result, self._queue))

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """At the end, wait until an async ``on_event`` has had all events."""
        try:
            yield
        finally:
            if self._queue is not None and self._task is not None:
                self._queue.close()
                done, _ = await asyncio.wait([self._task], timeout=_LAST_SECONDS)
                if not done:
                    self._task.cancel()
                    lost = "run %s: on_event took over %g s for the last events: they are lost"
                    _logger.warning(lost, self._run_id, _LAST_SECONDS)

    async def _serve(self, waiting: object, queue: EventQueue) -> None:
        while True:
            if inspect.isawaitable(waiting):
                try:
                    await waiting
                except Exception as error:
                    self._failed(error)
            event = await queue.get()
            if event is None:
                return
            waiting = self._pass_on(event)

    def _pass_on(self, event: Event) -> object:
        try:
            return None if self._on_event is None else self._on_event(event)
        except Exception as error:
            self._failed(error)
            return None

    def _failed(self, error: Exception) -> None:
        # Logged once: each later event may raise the same.
        if self._first is None:
            self._first = error
            _logger.error("run %s: on_event raised, and the run goes on", self._run_id, exc_info=error)
        self._lost += 1


def _log(run_id: str, event: Event) -> None:
    # Nothing that a model or the code wrote: a log may go to a terminal.
    match event:
        case Warned(text):
            _logger.warning("run %s: %s", run_id, one_line(text))
        case Retrying(role, reason, seconds, attempt, attempts):
            _logger.info(
                "run %s: %s: %s, again in %.1f s, %d of %d", run_id, role, reason, seconds, attempt, attempts
            )
        case RunStarted(max_iterations=turns):
            _logger.info("run %s: started, at most %d turns", run_id, turns)
        case TurnStarted(step):
            _logger.info("run %s: turn %d", run_id, step)
        case BlockEnded(step, result):
            outcome, seconds = result.outcome.value, result.elapsed
            _logger.info("run %s: turn %d: block %s after %.1f s", run_id, step, outcome, seconds)
        case RunEnded(how="result", result=result) if result is not None:
            _logger.info("run %s: ended (%s) after %.1f s", run_id, result.stop_reason, result.elapsed)
        case RunEnded(how=how):
            _logger.info("run %s: %s", run_id, how)
        case Metrics() | SupervisorWrote():
            pass
        case _:
            _logger.debug("run %s: %s", run_id, type(event).__name__)
