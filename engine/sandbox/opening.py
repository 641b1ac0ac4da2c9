"""Opening sandboxes. All that are open in one event loop, with the same packages or none, share one zygote."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from types import TracebackType

from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.lowlevel import RunVar

from ..tools import Tool, Toolbox, ToolCalls, ToolUse
from .config import CellResult, Isolation, Listing, OnCall, SandboxConfig
from .packages import Packages, find_packages
from .sandbox import Sandbox
from .zygote import Zygote

_IDLE_WITH_PACKAGES = 3


class _Shared:
    """The zygotes of one event loop, last used last, and how many need them.

    There is one without packages and one for each folder of them, since the sandbox that a zygote has ready was
    built with what its zygote sees. A folder that has changed is another.
    """

    def __init__(self) -> None:
        self.users = 0
        self.lock = asyncio.Lock()
        self.zygotes: dict[Packages | None, Zygote] = {}

    async def zygote(self, packages: Packages | None) -> Zygote:
        """A zygote that is alive. Its caller spawns before it awaits anything, so that it is not idle meanwhile."""
        async with self.lock:
            zygote = self.zygotes.pop(packages, None)
            if zygote is not None and not zygote.alive:
                await zygote.close()
                zygote = None
            if zygote is None:
                await self._end_idle()
                zygote = Zygote(packages.path if packages else None)
                await zygote.start()
            self.zygotes[packages] = zygote
            return zygote

    async def _end_idle(self) -> None:
        """Each holds some 25 MB: of those with packages, keep the few that were used last."""
        idle = [packages for packages, zygote in self.zygotes.items() if packages and zygote.idle]
        for packages in idle[:-_IDLE_WITH_PACKAGES]:
            await asyncio.shield(asyncio.ensure_future(self.zygotes.pop(packages).close()))

    async def close(self) -> None:
        """End them all."""
        zygotes, self.zygotes = list(self.zygotes.values()), {}
        await asyncio.gather(*(zygote.close() for zygote in zygotes))


_shared: RunVar[_Shared] = RunVar("supdist zygotes")


class Engine:
    """Keeps the zygotes of this event loop alive, so that the next sandbox costs a fork and no start.

    ``open_sandbox`` and ``arun`` enter one by themselves; hold one around several of them that follow
    each other. A zygote that was killed is replaced when the next sandbox is opened.

    Args:
        packages: as ``SandboxConfig.packages``: sandboxes with these packages are the first that are opened.
    """

    def __init__(self, packages: str | None = None) -> None:
        self._folder = packages

    async def __aenter__(self) -> Engine:
        if self._folder is not None:  # a reset may come after the current directory has changed
            self._folder = find_packages(self._folder).path
        try:
            self._state = _shared.get()
        except LookupError:
            self._state = _Shared()
            _shared.set(self._state)
        self._state.users += 1
        try:
            await self.zygote()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state = self._state
        state.users -= 1
        if state.users == 0 and state.zygotes:
            await asyncio.shield(asyncio.ensure_future(state.close()))

    async def zygote(self) -> Zygote:
        """A zygote that is alive, for sandboxes with these packages.

        Raises:
            SandboxUnavailable: it cannot be started here.
            TaskError: the packages cannot be used.
        """
        return await self._state.zygote(find_packages(self._folder) if self._folder else None)


@asynccontextmanager
async def open_sandbox(
    config: SandboxConfig | None = None,
    *,
    context: object = "",
    query: str = "",
    on_call: OnCall | None = None,
    tools: Mapping[str, Tool] | Toolbox | None = None,
    on_tool: Callable[[ToolUse], None] | None = None,
) -> AsyncGenerator[Sandbox]:
    """A sandbox with this context, closed at the end of the block.

    Args:
        config: limits and timeouts; the defaults are made for a supervisor's code.
        context: what the code sees as ``context``: a str, list, dict or other plain data.
        query: what it sees as ``query``.
        on_call: answers ``worker`` and ``worker_batch``; without it they raise ``WorkerError``.
        tools: more functions for the code, by their names: one that is given as it is goes inside and runs
            there, a ``HostTool`` is called here.
        on_tool: told of every call of a host tool that ended, in the event loop; it must not block.

    Raises:
        SandboxUnavailable: the isolation cannot be had here; nothing weaker is taken instead.
        TaskError: the context is no plain data, or the packages or a tool cannot be had.
    """
    config = config or SandboxConfig()
    calls = ToolCalls(Toolbox.of(tools), on_tool)
    async with Engine(config.packages) as engine:
        sandbox = Sandbox(engine.zygote, config, context, query, on_call=on_call, tools=calls)
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
        tools: Mapping[str, Tool] | Toolbox | None = None,
        on_tool: Callable[[ToolUse], None] | None = None,
    ) -> None:
        self._opening = open_sandbox(
            config, context=context, query=query, on_call=on_call, tools=tools, on_tool=on_tool
        )

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

    def list(self, *, most: int = 1000) -> Listing:
        """See ``Sandbox.list``."""
        return self._portal.call(lambda: self._sandbox.list(most=most))

    def reset(self) -> None:
        """See ``Sandbox.reset``."""
        self._portal.call(self._sandbox.reset)
