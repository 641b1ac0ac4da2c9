"""Threads for users' functions, which may never return."""

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
    """Runs functions in daemon threads, at most ``most`` at once."""

    def __init__(self, most: int) -> None:
        # A function that hangs keeps its place until it returns.
        self._free = asyncio.Semaphore(most)

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function and return its result. It runs on if the caller is cancelled.

        Raises:
            RuntimeError: the system cannot start a thread.
        """
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()

        def work() -> None:
            try:
                finish = partial(done.set_result, context.run(function))
            except BaseException as error:
                finish = partial(done.set_exception, error)
            # Raised if the loop is closed: then nothing waits for the result.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, finish)

        def settle(finish: Callable[[], None]) -> None:
            self._free.release()
            if not done.done():
                finish()

        try:
            # A daemon: the interpreter's end does not wait for it, as it does for the threads of a pool.
            threading.Thread(target=work, name="supdist tool", daemon=True).start()
        except RuntimeError:
            self._free.release()
            raise
        return await done
