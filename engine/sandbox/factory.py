"""Opening sandboxes. All that are open in one event loop share what makes them: a zygote for each folder of packages
and one for none, and one way to the container daemon.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.lowlevel import RunVar

from ..toolbox.toolbox import Tool, Toolbox, ToolCalls, ToolUse
from .backend import Backend, ProcessBackend
from .config import CellResult, Isolation, Listing, OnCall, SandboxConfig
from .packages import Packages, find_packages
from .sandbox import Sandbox
from .zygote import Zygote

if TYPE_CHECKING:
    from .docker_backend import DockerBackend

_IDLE_WITH_PACKAGES = 3


class _Shared:
    """What makes the sandboxes of one event loop, and how many need it: the zygotes, last used last, and the daemon.

    There is one without packages and one for each folder of them, since the sandbox that a zygote has ready was
    built with what its zygote sees. A folder that has changed is another.
    """

    def __init__(self) -> None:
        self.users = 0
        self.lock = asyncio.Lock()
        self.zygotes: dict[Packages | None, Zygote] = {}
        self._docker: DockerBackend | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is anything to close."""
        return bool(self.zygotes) or self._docker is not None

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

    async def docker(self) -> DockerBackend:
        """The container daemon, in touch."""
        from .docker_backend import DockerBackend

        async with self.lock:
            if self._docker is not None and not self._docker.alive:
                await self._docker.close()
                self._docker = None
            if self._docker is None:
                backend = DockerBackend()
                await backend.start()
                self._docker = backend
            return self._docker

    async def close(self) -> None:
        """End them all."""
        zygotes, self.zygotes = list(self.zygotes.values()), {}
        docker, self._docker = self._docker, None
        await asyncio.gather(
            *(zygote.close() for zygote in zygotes), *([docker.close()] if docker is not None else [])
        )


_shared: RunVar[_Shared] = RunVar("supdist zygotes")


class SandboxRuntime:
    """Keeps what makes sandboxes alive in this event loop, so that the next one costs a fork and no start.

    ``open_sandbox`` and ``arun`` enter one by themselves; hold one around several of them that follow
    each other. A zygote that was killed is replaced when the next sandbox is opened.

    Args:
        config: as for ``open_sandbox``: sandboxes like this are the first that are opened.
    """

    def __init__(self, config: SandboxConfig | None = None) -> None:
        self._config = config or SandboxConfig()

    async def __aenter__(self) -> SandboxRuntime:
        if self._config.packages is not None:  # a reset may come after the current directory has changed
            packages = find_packages(self._config.packages).path
            self._config = self._config.model_copy(update={"packages": packages})
        try:
            self._state = _shared.get()
        except LookupError:
            self._state = _Shared()
            _shared.set(self._state)
        self._state.users += 1
        try:
            await self.backend()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state = self._state
        state.users -= 1
        if state.users == 0 and state.is_open:
            await asyncio.shield(asyncio.ensure_future(state.close()))

    async def backend(self) -> Backend:
        """What opens sandboxes of this config, alive.

        Raises:
            SandboxUnavailable: it cannot be had here.
            TaskError: the packages cannot be used.
        """
        if self._config.backend == "docker":
            docker = await self._state.docker()
            await docker.prepare(self._config)
            return docker
        folder = self._config.packages
        return ProcessBackend(await self._state.zygote(find_packages(folder) if folder else None))


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
    async with SandboxRuntime(config) as engine:
        sandbox = Sandbox(engine.backend, config, context, query, on_call=on_call, tools=calls)
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
