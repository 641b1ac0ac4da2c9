"""A thread with an event loop that keeps one sandbox open, for code without an event loop."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import os
import threading
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager

from anyio.from_thread import BlockingPortal

from .diagnostics import translate_shortage
from .sandbox import Sandbox

_EXIT_SECONDS = 5.0


class LoopThread:
    """Opens a sandbox in a daemon thread, and closes it at ``stop`` or at the end of the process."""

    # A daemon: the interpreter waits for the end of any other thread, before anything can stop it.

    def __init__(self, manager: AbstractAsyncContextManager[Sandbox]) -> None:
        self._manager = manager
        self._process = os.getpid()
        self._opened: Future[tuple[BlockingPortal, Sandbox]] = Future()
        self._ended: Future[None] = Future()
        self._is_stopped = False
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> tuple[BlockingPortal, Sandbox]:
        """Start the thread, and wait for the sandbox. Raises as ``open_sandbox``."""
        try:
            with translate_shortage("An event loop for the sandbox cannot be started"):
                context = contextvars.copy_context()
                threading.Thread(
                    target=context.run, args=(self._run,), name="supdist sandbox", daemon=True
                ).start()
                opened = self._opened.result()
        except BaseException:
            # Also KeyboardInterrupt, while the sandbox opens.
            self.stop()
            raise
        atexit.register(self._end_with_process)
        return opened

    def stop(self) -> None:
        """Let the thread close the sandbox; return at once."""
        # In a fork of the process there is no such thread, and the loop's descriptors are its parent's.
        if self._is_stopped or os.getpid() != self._process:
            return
        self._is_stopped = True
        loop, task = self._loop, self._task
        if loop is None or task is None:
            return
        # Raised if the loop is closed already.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(task.cancel)

    def close(self) -> None:
        """Close the sandbox, and wait for it.

        Raises:
            Exception: from the end of the sandbox.
        """
        self.stop()
        self._ended.result()

    def _end_with_process(self) -> None:
        if os.getpid() == self._process:
            self.stop()
            with contextlib.suppress(Exception):
                self._ended.result(_EXIT_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._hold())
        except BaseException as error:
            self._error = error
        atexit.unregister(self._end_with_process)
        if self._error is None:
            self._ended.set_result(None)
            return
        if not self._opened.done():
            self._opened.set_exception(self._error)
        self._ended.set_exception(self._error)

    async def _hold(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._is_stopped or self._task is None:
            return
        async with BlockingPortal() as portal:
            try:
                await self._keep_open(portal, self._task)
            # Caught here: the portal would raise it in a group.
            except BaseException as error:
                self._error = error

    async def _keep_open(self, portal: BlockingPortal, task: asyncio.Task[None]) -> None:
        async with self._manager as sandbox:
            self._opened.set_result((portal, sandbox))
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                # Else the clean-up below would count as cancelled.
                task.uncancel()
