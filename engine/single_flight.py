"""Equal calls under way at once are made once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Flight(Generic[T]):
    task: asyncio.Future[T]
    waiters: int = 0


class SingleFlight(Generic[K, T]):
    """Calls under way, by key. For one event loop.

    A call lives as long as somebody waits for it: cancelling one waiter leaves it to the others, cancelling
    the last one cancels it, and a newcomer then starts another. Its result, or its exception, reaches all. What
    it must not lose when its last waiter goes as it ends (an answer that was paid for) it has to keep itself.
    """

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[T]] = {}

    def __contains__(self, key: K) -> bool:
        """Whether such a call is under way, so that who comes now does not start it."""
        return key in self._flights

    async def run(self, key: K, call: Callable[[], Awaitable[T]]) -> T:
        """What ``call`` gives, or what an equal call under way does."""
        flight = self._flights.get(key) or self._start(key, call)
        flight.waiters += 1
        try:
            await asyncio.wait((flight.task,))
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                self._forget(key, flight)
                flight.task.cancel()
                await asyncio.wait((flight.task,))
        return flight.task.result()

    def _start(self, key: K, call: Callable[[], Awaitable[T]]) -> _Flight[T]:
        flight = self._flights[key] = _Flight(asyncio.ensure_future(call()))

        def land(task: asyncio.Future[T]) -> None:
            self._forget(key, flight)
            if not task.cancelled():
                task.exception()  # heard: nobody may be left to whom it matters

        flight.task.add_done_callback(land)
        return flight

    def _forget(self, key: K, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
