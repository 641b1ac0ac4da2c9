"""Keep signal handlers of guest code out of the channel's work."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

_set_handler = signal.signal
_get_handler = signal.getsignal


class ReentryError(RuntimeError):
    """The channel was used from within its own work."""

    # Tracebacks name it without a module.
    __module__ = "builtins"

    def __init__(self) -> None:
        super().__init__(
            "worker, worker_batch, FINAL and host tools cannot be called while this thread is inside one of "
            "them: by a signal handler, a destructor or a trace function. Set a flag there, and call after it"
        )


class Interrupts:
    """Defers KeyboardInterrupt and signal handlers while the channel works, in the main thread.

    Python runs handlers between any two instructions. Their exceptions would leave a lock held, or a message
    half read.
    """

    def __init__(self) -> None:
        # Python runs signal handlers in this thread.
        self._main = threading.get_ident()
        self._depth = 0
        self._open = False
        self._pending: deque[Callable[[], object]] = deque()
        self._threads: set[int] = set()

    def run_or_defer(self, handler: Callable[[], object]) -> None:
        """Run a handler in the main thread, now or where the channel allows it."""
        if self._depth and not self._open:
            self._pending.append(handler)
        else:
            handler()

    def section(self) -> _Section:
        """Return a context for the channel's work; a second one in the same thread raises ReentryError."""
        return _Section(self)

    def allowed(self) -> _Allowed:
        """Return a context, inside ``section``, that runs handlers."""
        return _Allowed(self)

    def clear(self) -> None:
        """Drop what was deferred."""
        self._pending.clear()

    def enter(self) -> None:
        """Begin a section."""
        thread = threading.get_ident()
        # A destructor or a weak reference's callback may run in any thread, at any instruction.
        if thread in self._threads:
            raise ReentryError
        self._threads.add(thread)
        if thread == self._main:
            self._depth += 1

    def leave(self) -> None:
        """End a section."""
        thread = threading.get_ident()
        self._threads.discard(thread)
        if thread == self._main:
            self._depth -= 1
            self._run_pending()

    def open(self, *, state: bool) -> None:
        """Enter or leave an ``allowed`` context."""
        if threading.get_ident() != self._main:
            return
        self._open = state
        if state:
            try:
                self._run_pending()
            except BaseException:
                self._open = False
                raise

    def _run_pending(self) -> None:
        while self._pending:
            self._pending.popleft()()


class _Section:
    # A class, not a generator: it is part of every call.

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._trace: Any = None
        self._profile: Any = None

    def __enter__(self) -> None:
        # A trace function is called inside the channel too, and may raise anything. It is stopped before
        # anything changes, and set again when all has changed back.
        self._trace, self._profile = sys.gettrace(), sys.getprofile()
        if self._trace is not None:
            sys.settrace(None)
        # A profiler in C is no function, does not call code, and could not be set again.
        if self._profile is not None and callable(self._profile):
            sys.setprofile(None)
        try:
            self._interrupts.enter()
        except ReentryError:
            self._trace_again()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self._interrupts.leave()
        finally:
            self._trace_again()

    def _trace_again(self) -> None:
        if self._profile is not None and callable(self._profile):
            sys.setprofile(self._profile)
        if self._trace is not None:
            sys.settrace(self._trace)


class _Allowed:
    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts

    def __enter__(self) -> None:
        self._interrupts.open(state=True)

    def __exit__(self, *_: object) -> None:
        self._interrupts.open(state=False)


class _Handler:
    """A signal handler of guest code."""

    def __init__(
        self, handler: Callable[..., object], interrupts: Interrupts, is_running: Callable[[], bool]
    ) -> None:
        self.handler = handler
        self._interrupts = interrupts
        self._is_running = is_running

    def __call__(self, *arguments: object) -> None:
        self._interrupts.run_or_defer(partial(self._run, *arguments))

    def _run(self, *arguments: object) -> None:
        if self._is_running():
            self.handler(*arguments)
            return
        # Between cells nothing takes its exception: it would end the interpreter.
        with contextlib.suppress(BaseException):
            self.handler(*arguments)


def guard_handlers(interrupts: Interrupts, is_running: Callable[[], bool]) -> None:
    """Let ``signal.signal`` keep handlers of guest code out of the channel."""

    def set_guarded(signalnum: Any, handler: Any) -> Any:
        if callable(handler) and not isinstance(handler, (_Handler, signal.Handlers)):
            handler = _Handler(handler, interrupts, is_running)
        return _unguarded(_set_handler(signalnum, handler))

    def get_unguarded(signalnum: Any) -> Any:
        return _unguarded(_get_handler(signalnum))

    signal.signal = set_guarded
    signal.getsignal = get_unguarded


def _unguarded(handler: Any) -> Any:
    return handler.handler if isinstance(handler, _Handler) else handler
