"""Long work in an event loop, in slices: the loop runs in between.

A thread would not help: most of this work holds the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import TypeAlias, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

# Work that yields after each slice, and returns its result.
Steps: TypeAlias = Generator[None, None, T]

# Characters or bytes of one slice. The slowest work, decoding invalid UTF-8, takes 3 ms for it.
SLICE = 1 << 18

# All sliced work of one turn of the event loop ends after so long.
_TURN_SECONDS = 0.004


def finish(steps: Steps[T]) -> T:
    """Do all steps at once, for callers without an event loop."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


async def in_slices(steps: Steps[T]) -> T:
    """Do the steps, and let the event loop run between them."""
    turns = _turns_of_loop()
    try:
        while True:
            async with turns.lock:
                await turns.wait()
                next(steps)
                while turns.has_time():
                    next(steps)
    except StopIteration as end:
        return end.value
    finally:
        steps.close()


class _Turns:
    """Gives each turn of one event loop to one piece of work."""

    def __init__(self) -> None:
        # It is fair: those who wait get it in order.
        self.lock = asyncio.Lock()
        self._end: float | None = None

    async def wait(self) -> None:
        """Wait for time in a turn. The caller has the lock."""
        # Other work may have used up this turn. ``_begin_turn`` is called before this wait ends.
        if self._end is not None and not self.has_time():
            await asyncio.sleep(0)
        if self._end is None:
            self._end = time.monotonic() + _TURN_SECONDS
            asyncio.get_running_loop().call_soon(self._begin_turn)

    def has_time(self) -> bool:
        """Return whether this turn has time left."""
        return self._end is not None and time.monotonic() < self._end

    def _begin_turn(self) -> None:
        self._end = None


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()


def _turns_of_loop() -> _Turns:
    loop = asyncio.get_running_loop()
    turns = _turns.get(loop)
    if turns is None:
        turns = _turns[loop] = _Turns()
    return turns
