"""Opening sandboxes. All that are open in one event loop share one zygote."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from types import TracebackType

from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.lowlevel import RunVar

from .config import CellResult, Isolation, OnCall, SandboxConfig
from .sandbox import Sandbox
from .zygote import Zygote


class _Shared:
    """The zygote of one event loop, and how many need it."""

    def __init__(self) -> None:
        self.users = 0
        self.lock = asyncio.Lock()
        self.zygote: Zygote | None = None


_shared: RunVar[_Shared] = RunVar("supdist zygote")


class Engine:
    """Keeps the zygote of this event loop alive, so that the next sandbox costs a fork and no start.

    ``open_sandbox`` and ``arun`` enter one by themselves; hold one around several of them that follow
    each other. A zygote that was killed is replaced when the next sandbox is opened.
    """

    async def __aenter__(self) -> Engine:
        try:
            self._state = _shared.get()
        except LookupError:
            self._state = _Shared()
            _shared.set(self._state)
        self._state.users += 1
        try:
            await self._ensure()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state = self._state
        state.users -= 1
        if state.users == 0 and state.zygote is not None:
            zygote, state.zygote = state.zygote, None
            await asyncio.shield(asyncio.ensure_future(zygote.close()))

    async def _ensure(self) -> None:
        async with self._state.lock:
            if self._state.zygote is not None and not self._state.zygote.alive:
                dead, self._state.zygote = self._state.zygote, None
                await dead.close()
            if self._state.zygote is None:
                zygote = Zygote()
                await zygote.start()
                self._state.zygote = zygote

    async def zygote(self) -> Zygote:
        """A zygote that is alive."""
        await self._ensure()
        assert self._state.zygote is not None
        return self._state.zygote


@asynccontextmanager
async def open_sandbox(
    config: SandboxConfig | None = None,
    *,
    context: object = "",
    query: str = "",
    on_call: OnCall | None = None,
) -> AsyncGenerator[Sandbox]:
    """A sandbox with this context, closed at the end of the block.

    Args:
        config: limits and timeouts; the defaults are made for a supervisor's code.
        context: what the code sees as ``context``: a str, list, dict or other plain data.
        query: what it sees as ``query``.
        on_call: answers ``worker`` and ``worker_batch``; without it they raise ``WorkerError``.

    Raises:
        SandboxUnavailable: the isolation cannot be had here; nothing weaker is taken instead.
        TaskError: the context is no plain data.
    """
    async with Engine() as engine:
        sandbox = Sandbox(engine.zygote, config or SandboxConfig(), context, query, on_call)
        try:
            await sandbox.start()
            yield sandbox
        finally:
            await asyncio.shield(asyncio.ensure_future(sandbox.close()))


class SyncSandbox(AbstractContextManager["SyncSandbox"]):
    """A sandbox for code without an event loop: the same object, called through a thread that has one.

    Takes the arguments of ``open_sandbox``.
    """

    def __init__(
        self,
        config: SandboxConfig | None = None,
        *,
        context: object = "",
        query: str = "",
        on_call: OnCall | None = None,
    ) -> None:
        self._opening = open_sandbox(config, context=context, query=query, on_call=on_call)

    def __enter__(self) -> SyncSandbox:
        with ExitStack() as stack:
            self._portal: BlockingPortal = stack.enter_context(start_blocking_portal("asyncio"))
            self._sandbox = stack.enter_context(self._portal.wrap_async_context_manager(self._opening))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def isolation(self) -> Isolation:
        """See ``Sandbox.isolation``."""
        return self._sandbox.isolation

    def execute(self, code: str, *, timeout: float | None = None) -> CellResult:
        """See ``Sandbox.execute``."""
        return self._portal.call(lambda: self._sandbox.execute(code, timeout=timeout))

    def put(self, path: str, data: bytes) -> None:
        """See ``Sandbox.put``."""
        self._portal.call(self._sandbox.put, path, data)

    def get(self, path: str, *, max_bytes: int = 64 << 20) -> bytes:
        """See ``Sandbox.get``."""
        return self._portal.call(lambda: self._sandbox.get(path, max_bytes=max_bytes))

    def reset(self) -> None:
        """See ``Sandbox.reset``."""
        self._portal.call(self._sandbox.reset)
