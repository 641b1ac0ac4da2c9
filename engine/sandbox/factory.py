"""Opens sandboxes: ``open_sandbox``, ``SyncSandbox``, ``SandboxRuntime``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.lowlevel import RunVar

from ..arguments import reject
from ..errors import SandboxError
from ..toolbox.toolbox import Tool, Toolbox, ToolCalls, ToolUse
from .backend import Backend, ProcessBackend
from .config import CellResult, Isolation, Listing, OnCall, SandboxConfig
from .packages import Packages, find_packages
from .running_guest import GuestSetup
from .sandbox import Sandbox
from .zygote import ZygoteClient

if TYPE_CHECKING:
    from .docker_backend import DockerBackend

# A zygote takes some 25 MB.
_IDLE_WITH_PACKAGES = 3


class _SharedBackends:
    """Zygotes and containers that the sandboxes of one event loop share."""

    def __init__(self) -> None:
        self.users = 0
        self._lock = asyncio.Lock()
        # Last used last. One for each folder of packages and one without: a zygote builds one guest
        # ahead, with its own packages.
        self._zygotes: dict[Packages | None, ZygoteClient] = {}
        self._docker: DockerBackend | None = None

    @property
    def is_open(self) -> bool:
        return bool(self._zygotes) or self._docker is not None

    async def zygote(self, packages: Packages | None) -> ZygoteClient:
        """Return a zygote that is alive."""
        async with self._lock:
            # Popped and put back: the order of the dict is that of the last use.
            zygote = self._zygotes.pop(packages, None)
            if zygote is not None and not zygote.alive:
                await zygote.close()
                zygote = None
            if zygote is None:
                await self._close_idle()
                zygote = await ZygoteClient.start(packages.path if packages else None)
            self._zygotes[packages] = zygote
            return zygote

    async def _close_idle(self) -> None:
        # Zygotes without packages stay: the next sandbox mostly needs that one.
        idle = [packages for packages, zygote in self._zygotes.items() if packages and zygote.idle]
        for packages in idle[:-_IDLE_WITH_PACKAGES]:
            await asyncio.shield(asyncio.ensure_future(self._zygotes.pop(packages).close()))

    async def docker(self) -> DockerBackend:
        """Return a docker backend that is alive."""
        from .docker_backend import DockerBackend

        async with self._lock:
            if self._docker is not None and not self._docker.alive:
                await self._docker.close()
                self._docker = None
            if self._docker is None:
                self._docker = await DockerBackend.start()
            return self._docker

    async def close(self) -> None:
        zygotes, self._zygotes = list(self._zygotes.values()), {}
        docker, self._docker = self._docker, None
        await asyncio.gather(
            *(zygote.close() for zygote in zygotes), *([docker.close()] if docker is not None else [])
        )


# One value for each event loop.
_shared: RunVar[_SharedBackends] = RunVar("supdist sandbox backends")


@asynccontextmanager
async def _use_shared_backends() -> AsyncGenerator[_SharedBackends]:
    try:
        shared = _shared.get()
    except LookupError:
        shared = _SharedBackends()
        _shared.set(shared)
    shared.users += 1
    try:
        yield shared
    finally:
        shared.users -= 1
        if shared.users == 0 and shared.is_open:
            # Shielded: a cancelled caller must not leave processes behind.
            await asyncio.shield(asyncio.ensure_future(shared.close()))


@dataclass(frozen=True, slots=True)
class _BackendSource:
    shared: _SharedBackends
    config: SandboxConfig

    async def find(self) -> Backend:
        if self.config.backend == "docker":
            docker = await self.shared.docker()
            await docker.prepare(self.config)
            return docker
        folder = self.config.packages
        return ProcessBackend(await self.shared.zygote(find_packages(folder) if folder else None))


@asynccontextmanager
async def _open_backend(config: SandboxConfig) -> AsyncGenerator[_BackendSource]:
    _check_config(config)
    if config.packages is not None:
        # Made absolute now: at a reset the process may have another current directory.
        config = config.model_copy(update={"packages": find_packages(config.packages).path})
    async with _use_shared_backends() as shared:
        source = _BackendSource(shared, config)
        await source.find()
        yield source


class SandboxRuntime:
    """Keeps this event loop's zygotes and containers alive: the next sandbox costs only a fork.

    Raises:
        SandboxUnavailable: this machine has no such backend.
        TaskError: the packages cannot be used.
    """

    def __init__(self, config: SandboxConfig | None = None) -> None:
        self._config = SandboxConfig() if config is None else config
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> SandboxRuntime:
        await self._stack.enter_async_context(_open_backend(self._config))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()


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
    """Open a sandbox, and close it at the end of the block.

    Args:
        context: the code's ``context``: a str, list, dict or other plain data.
        query: the code's ``query``.
        on_call: answers ``worker`` and ``worker_batch``.
        tools: more functions: a plain one runs inside, a ``HostTool`` here.
        on_tool: called in the event loop after each call of a host tool.

    Raises:
        SandboxUnavailable: this machine cannot build the isolation.
        TaskError: an argument has a wrong type, the context is no plain data, or the packages or a tool
            cannot be used.
    """
    if config is None:
        config = SandboxConfig()
    _check_query(query)
    setup = GuestSetup(config, context, query, on_call, ToolCalls(Toolbox.of(tools), on_tool))
    async with _open_backend(config) as source:
        sandbox = await Sandbox.open(source.find, setup)
        try:
            yield sandbox
        finally:
            # Shielded, as above.
            await asyncio.shield(asyncio.ensure_future(sandbox.close()))


# ``object``, since a caller without a type checker may pass anything.
def _check_config(config: object) -> None:
    if not isinstance(config, SandboxConfig):
        reject("config", config, "a SandboxConfig or None", 'give SandboxConfig(memory="1GiB", timeout=60)')


def _check_query(query: object) -> None:
    if not isinstance(query, str):
        reject("query", query, "text")


@dataclass(frozen=True, slots=True)
class _Opened:
    sandbox: Sandbox
    portal: BlockingPortal
    stack: ExitStack


class SyncSandbox(AbstractContextManager["SyncSandbox"]):
    """A ``Sandbox`` for code without an event loop. Takes ``open_sandbox``'s arguments."""

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
        self._manager = open_sandbox(
            config, context=context, query=query, on_call=on_call, tools=tools, on_tool=on_tool
        )
        self._state: _Opened | None = None

    def __enter__(self) -> SyncSandbox:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal("asyncio"))
            sandbox = stack.enter_context(portal.wrap_async_context_manager(self._manager))
            self._state = _Opened(sandbox, portal, stack.pop_all())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        opened, self._state = self._opened, None
        opened.stack.__exit__(kind, error, trace)

    @property
    def _opened(self) -> _Opened:
        # Before and after the ``with`` block.
        if self._state is None:
            raise SandboxError("this sandbox is not open; use it inside `with SyncSandbox(...) as sandbox:`")
        return self._state

    @property
    def isolation(self) -> Isolation:
        """See ``Sandbox.isolation``."""
        return self._opened.sandbox.isolation

    def execute(self, code: str, *, timeout: float | None = None) -> CellResult:
        """See ``Sandbox.execute``."""
        opened = self._opened
        return opened.portal.call(lambda: opened.sandbox.execute(code, timeout=timeout))

    def put(self, path: str, data: bytes) -> None:
        """See ``Sandbox.put``."""
        self._opened.portal.call(self._opened.sandbox.put, path, data)

    def get(self, path: str, *, max_bytes: int = 64 << 20) -> bytes:
        """See ``Sandbox.get``."""
        opened = self._opened
        return opened.portal.call(lambda: opened.sandbox.get(path, max_bytes=max_bytes))

    def list(self, *, most: int = 1000) -> Listing:
        """See ``Sandbox.list``."""
        opened = self._opened
        return opened.portal.call(lambda: opened.sandbox.list(most=most))

    def reset(self) -> None:
        """See ``Sandbox.reset``."""
        self._opened.portal.call(self._opened.sandbox.reset)
