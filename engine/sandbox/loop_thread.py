"""An event loop in a thread, for code without one. A process has one, and so its sandboxes share zygotes."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Generic, TypeVar

from ..errors import SandboxError
from .diagnostics import translate_shortage

T = TypeVar("T")

_EXIT_SECONDS = 5.0

_CALLED_BY_ITSELF = (
    "this call would wait for itself: it comes from the event loop that serves it; in an async function, "
    "write `await asyncio.to_thread(sandbox.execute, code)`, or use open_sandbox()"
)


class LoopThread:
    """Runs coroutines for other threads, until ``stop`` or the end of the process.

    Args:
        keep: held open as long as the event loop runs.
    """

    def __init__(self, keep: Callable[[], AbstractAsyncContextManager[object]]) -> None:
        self._keep = keep
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: Future[asyncio.AbstractEventLoop] = Future()
        self._stopping: asyncio.Event | None = None
        self._ended = threading.Event()
        self._calls: set[LoopCall[Any]] = set()
        self._process = os.getpid()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this thread."""
        return threading.current_thread() is self._thread

    def submit(self, work: Callable[[], Coroutine[Any, Any, T]]) -> LoopCall[T]:
        """Start a coroutine in the caller's context.

        Raises:
            SandboxUnavailable: no thread or event loop can be started.
            SandboxError: the process ends, or the caller runs in this thread.
        """
        if self.is_current:
            raise SandboxError(_CALLED_BY_ITSELF)
        call = LoopCall(self._start(), work)
        self._calls.add(call)
        call.start(self._calls.discard)
        # The loop may have ended in between, and would never begin the call.
        if self._ended.is_set():
            call.give_up()
        return call

    def call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine as ``submit`` does, and wait for its result. Ctrl-C cancels it."""
        return self.submit(work).result()

    def stop(self) -> None:
        """Cancel all coroutines, and let the thread end; return at once."""
        if self._stopping is not None:
            # Raised if the loop is closed already.
            with contextlib.suppress(RuntimeError):
                self._loop.result().call_soon_threadsafe(self._stopping.set)

    def join(self) -> None:
        """Wait for the end of the thread."""
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> asyncio.AbstractEventLoop:
        with self._starting, translate_shortage("An event loop for the sandbox cannot be started"):
            if self._thread is None or (self._loop.done() and self._loop.exception() is not None):
                self._loop = Future()
                # A daemon: the interpreter waits for any other thread, before anything can stop it.
                thread = threading.Thread(target=self._run, name="supdist sandboxes", daemon=True)
                thread.start()
                self._thread = thread
            return self._loop.result()

    def _end_with_process(self) -> None:
        # A fork of the process has no such thread, and the loop's descriptors are its parent's.
        if os.getpid() == self._process:
            self.stop()
            self._ended.wait(_EXIT_SECONDS)

    def _run(self) -> None:
        self._ended.clear()
        atexit.register(self._end_with_process)
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if not self._loop.done():
                self._loop.set_exception(error)
        finally:
            atexit.unregister(self._end_with_process)
            self._ended.set()
            for call in list(self._calls):
                call.give_up()

    async def _serve(self) -> None:
        stopping = asyncio.Event()
        async with self._keep():
            self._stopping = stopping
            self._loop.set_result(asyncio.get_running_loop())
            await stopping.wait()
            # Sandboxes close before the zygotes that they share.
            calls = list(self._calls)
            for call in calls:
                call.cancel_here()
            await asyncio.gather(*(call.task for call in calls if call.task), return_exceptions=True)


class LoopCall(Generic[T]):
    """A coroutine in the event loop of another thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._loop = loop
        self._work = work
        self._is_cancelled = False
        self._done: Future[T] = Future()
        self.task: asyncio.Task[T] | None = None

    def start(self, on_end: Callable[[LoopCall[Any]], None]) -> None:
        """Start it.

        Raises:
            SandboxError: the event loop has ended.
        """
        self.when_done(lambda _: on_end(self))
        try:
            # In a copy of the caller's context.
            self._loop.call_soon_threadsafe(self._begin)
        except RuntimeError:
            self.give_up()

    def cancel(self) -> None:
        """Cancel it; return at once."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.cancel_here)

    def cancel_here(self) -> None:
        """Cancel it, from its event loop."""
        self._is_cancelled = True
        if self.task is not None:
            self.task.cancel()

    def give_up(self) -> None:
        """Fail it, because its event loop has ended."""
        with contextlib.suppress(InvalidStateError):
            self._done.set_exception(SandboxError("the process ends: its sandboxes are closed"))

    def when_done(self, then: Callable[[BaseException | None], None]) -> None:
        """Call a function with the exception that ends it, or None."""
        self._done.add_done_callback(lambda done: then(done.exception()))

    def result(self) -> T:
        """Wait for its result. If the wait is interrupted, cancel it and wait for its end."""
        try:
            return self._done.result()
        except BaseException:
            if not self._done.done():
                self.cancel()
                # Its own end does not matter: the interrupt does.
                with contextlib.suppress(Exception, asyncio.CancelledError):
                    self._done.result()
            raise

    def _begin(self) -> None:
        try:
            self.task = self._loop.create_task(self._work())
        except Exception as error:
            # Such as wrong arguments: nobody else would end the wait.
            self._done.set_exception(error)
            return
        self.task.add_done_callback(self._finish)
        if self._is_cancelled:
            self.task.cancel()

    def _finish(self, task: asyncio.Task[T]) -> None:
        with contextlib.suppress(InvalidStateError):
            if task.cancelled():
                self._done.set_exception(asyncio.CancelledError())
            elif (error := task.exception()) is not None:
                self._done.set_exception(error)
            else:
                self._done.set_result(task.result())


class Held(Generic[T]):
    """An async context manager that a task of a ``LoopThread`` holds open."""

    def __init__(self, thread: LoopThread, manager: AbstractAsyncContextManager[T]) -> None:
        self._thread = thread
        self._manager = manager
        self._opened: Future[T] = Future()
        self._call: LoopCall[None] | None = None

    def open(self) -> T:
        """Enter it, and wait for its value. Raises as the context manager, and as ``LoopThread.submit``."""
        self._call = self._thread.submit(self._hold)
        self._call.when_done(self._fail)
        try:
            return self._opened.result()
        except BaseException:
            # Also KeyboardInterrupt, while it opens.
            self._call.cancel()
            raise

    def release(self) -> None:
        """Let the task leave it; return at once."""
        if self._call is not None:
            self._call.cancel()

    def close(self) -> None:
        """Leave it, and wait for that. Raises as the end of the context manager."""
        if self._call is not None:
            self._call.cancel()
            self._call.result()

    async def _hold(self) -> None:
        async with self._manager as value:
            self._opened.set_result(value)
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                # Else the clean-up below would count as cancelled.
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()

    def _fail(self, error: BaseException | None) -> None:
        if error is not None and not self._opened.done():
            self._opened.set_exception(error)


_threads: dict[int, LoopThread] = {}


@contextmanager
def loop_thread(keep: Callable[[], AbstractAsyncContextManager[object]]) -> Generator[LoopThread]:
    """Yield the ``LoopThread`` of this process; to itself, another one that ends with the block."""
    # By process: a fork has no thread of its parent. ``setdefault`` is atomic.
    shared = _threads.setdefault(os.getpid(), LoopThread(keep))
    if not shared.is_current:
        yield shared
        return
    own = LoopThread(keep)
    try:
        yield own
    finally:
        own.stop()


def stop_loop_thread() -> None:
    """Stop this process's ``LoopThread`` and wait for its end; the next call starts another one."""
    thread = _threads.pop(os.getpid(), None)
    if thread is not None:
        thread.stop()
        thread.join()
