"""Threads for functions of a user's that may never return."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

T = TypeVar("T")


class DaemonThreads:
    """At most so many threads at once, a fresh one for every function.

    A function that nobody waits for any more keeps its thread until it returns. The interpreter's end does not
    wait for it, as it would for a thread of a pool.
    """

    def __init__(self, most: int) -> None:
        self._free = asyncio.Semaphore(most)

    async def run(self, function: Callable[[], T]) -> T:
        """What the function gives or raises. Cancelled, it is left to itself.

        Raises:
            RuntimeError: the system has no thread to give.
        """
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()

        def work() -> None:
            try:
                tell = partial(done.set_result, context.run(function))
            except BaseException as error:
                tell = partial(done.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(settle, tell)

        def settle(tell: Callable[[], None]) -> None:
            self._free.release()
            if not done.done():
                tell()

        try:
            threading.Thread(target=work, name="supdist tool", daemon=True).start()
        except RuntimeError:
            self._free.release()
            raise
        return await done
