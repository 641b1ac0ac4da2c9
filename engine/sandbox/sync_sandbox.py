"""Sandboxes for code without an event loop: ``SyncSandbox``."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from ..errors import SandboxError
from ..toolbox.toolbox import Tool, Toolbox, ToolUse
from .config import CellResult, Isolation, Listing, OnCall, SandboxConfig
from .context import NO_CONTEXT
from .factory import keep_backends, open_sandbox
from .loop_thread import Held, LoopThread, loop_thread
from .misplaced import without_limits
from .sandbox import Sandbox
from .zygote import OTHER_PROCESS


def blocking_calls() -> AbstractContextManager[LoopThread]:
    """Return the thread for blocking calls, with zygotes and containers that last as long as the process."""
    return loop_thread(keep_backends)


@dataclass(frozen=True, slots=True)
class _Opened:
    sandbox: Sandbox
    thread: LoopThread
    held: Held[Sandbox]
    stack: ExitStack
    # Closes the sandbox when the ``SyncSandbox`` is garbage.
    finalizer: weakref.finalize[[], Any]


class SyncSandbox(AbstractContextManager["SyncSandbox"]):
    """A ``Sandbox`` for code without an event loop. Takes ``open_sandbox``'s arguments.

    Use it in a ``with`` block, or call ``open`` and ``close``. All of a process share one event loop, in a
    thread: ``on_call`` and async tools must not block it.
    """

    @without_limits
    def __init__(
        self,
        config: SandboxConfig | None = None,
        *,
        context: object = NO_CONTEXT,
        query: str | None = None,
        on_call: OnCall | None = None,
        tools: Mapping[str, Tool] | Toolbox | None = None,
        on_tool: Callable[[ToolUse], None] | None = None,
    ) -> None:
        # A manager can be entered once, and a SyncSandbox again after a close.
        self._make_manager = partial(
            open_sandbox, config, context=context, query=query, on_call=on_call, tools=tools, on_tool=on_tool
        )
        self._state: _Opened | None = None

    def open(self) -> Self:
        """Open it and return it. Raises as ``open_sandbox``, and ``SandboxError`` if it is open."""
        if self._state is not None:
            raise SandboxError("this sandbox is open already")
        with ExitStack() as stack:
            thread = stack.enter_context(blocking_calls())
            held = Held(thread, self._make_manager())
            sandbox = held.open()
            finalizer = weakref.finalize(self, held.release)
            # At the end of the process, the thread closes its sandboxes.
            finalizer.atexit = False
            self._state = _Opened(sandbox, thread, held, stack.pop_all(), finalizer)
        return self

    def close(self) -> None:
        """Close it; a closed one stays closed."""
        if self._state is None:
            return
        opened, self._state = self._state, None
        opened.finalizer.detach()
        # In a fork of the process, the sandbox is the other process's.
        if opened.sandbox.is_ours:
            with opened.stack:
                opened.held.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _opened(self) -> _Opened:
        if self._state is None:
            raise SandboxError(
                "this sandbox is not open; use it inside `with SyncSandbox(...) as sandbox:`, or call open()"
            )
        # The thread that would answer does not exist in a fork.
        if not self._state.sandbox.is_ours:
            raise SandboxError(OTHER_PROCESS)
        return self._state

    @property
    def isolation(self) -> Isolation:
        """See ``Sandbox.isolation``."""
        return self._opened.sandbox.isolation

    def execute(self, code: str, *, timeout: float | None = None) -> CellResult:
        """See ``Sandbox.execute``. Ctrl-C interrupts the cell."""
        opened = self._opened
        return opened.thread.call(lambda: opened.sandbox.execute(code, timeout=timeout))

    def interrupt(self) -> None:
        """See ``Sandbox.interrupt``. Call it from another thread than the one that waits in ``execute``."""
        opened = self._opened
        opened.thread.call(opened.sandbox.interrupt)

    def put(self, path: str, data: bytes) -> None:
        """See ``Sandbox.put``."""
        opened = self._opened
        opened.thread.call(lambda: opened.sandbox.put(path, data))

    def get(self, path: str, *, max_bytes: int = 64 << 20) -> bytes:
        """See ``Sandbox.get``."""
        opened = self._opened
        return opened.thread.call(lambda: opened.sandbox.get(path, max_bytes=max_bytes))

    def list(self, *, most: int = 1000) -> Listing:
        """See ``Sandbox.list``."""
        opened = self._opened
        return opened.thread.call(lambda: opened.sandbox.list(most=most))

    def reset(self) -> None:
        """See ``Sandbox.reset``."""
        opened = self._opened
        opened.thread.call(opened.sandbox.reset)
