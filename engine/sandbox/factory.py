"""Opens sandboxes in an event loop: ``open_sandbox``, ``SandboxRuntime``."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
)
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from anyio.lowlevel import RunVar

from ..arguments import reject
from ..errors import SandboxError
from ..toolbox.toolbox import Tool, Toolbox, ToolCalls, ToolUse
from .backend import Backend, ProcessBackend
from .config import OnCall, SandboxConfig
from .context import NO_CONTEXT
from .diagnostics import translate_shortage
from .misplaced import without_limits
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
        self._users = 0
        self._until_loop_ends: AsyncGenerator[None] | None = None
        self._process = os.getpid()
        self._lock = asyncio.Lock()
        # Last used last. One for each folder of packages and one without: a zygote builds one guest
        # ahead, with its own packages.
        self._zygotes: dict[Packages | None, ZygoteClient] = {}
        # Those that take no more orders, and may have sandboxes in use.
        self._retired: list[ZygoteClient | DockerBackend] = []
        self._docker: DockerBackend | None = None

    @classmethod
    async def of_this_loop(cls) -> _SharedBackends:
        """Return those of the running event loop, for one more user, who calls ``leave``."""
        found = _shared.get(None)
        shared = found() if found is not None else None
        if shared is None:
            shared = cls()
            _shared.set(weakref.ref(shared))
        shared._users += 1
        if shared._until_loop_ends is None:
            # The event loop closes its generators when it ends: backends that no one has closed end then.
            shared._until_loop_ends = generator = shared._close_at_end()
            await anext(generator)
        return shared

    async def _close_at_end(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await self._close()

    async def leave(self) -> None:
        """Close them after the last user."""
        self._users -= 1
        # In a fork of the process, they are the other process's.
        if self._users == 0 and self._until_loop_ends is not None and os.getpid() == self._process:
            generator, self._until_loop_ends = self._until_loop_ends, None
            # Shielded: a cancelled caller must not leave processes behind.
            await asyncio.shield(asyncio.ensure_future(generator.aclose()))

    async def zygote(self, packages: Packages | None) -> ZygoteClient:
        """Return a zygote that is alive."""
        async with self._lock:
            # Popped and put back: the order of the dict is that of the last use.
            zygote = self._zygotes.pop(packages, None)
            if zygote is not None and (not zygote.alive or zygote.is_stopped):
                zygote.retire()
                self._retired.append(zygote)
                zygote = None
            await self._close_idle()
            if zygote is None:
                zygote = await ZygoteClient.start(packages.path if packages else None)
            self._zygotes[packages] = zygote
            return zygote

    async def _close_idle(self) -> None:
        # Zygotes without packages stay: the next sandbox mostly needs that one.
        idle = [packages for packages, zygote in self._zygotes.items() if packages and zygote.idle]
        closing: list[ZygoteClient | DockerBackend] = [
            self._zygotes.pop(packages) for packages in idle[:-_IDLE_WITH_PACKAGES]
        ]
        closing += [backend for backend in self._retired if backend.idle]
        self._retired = [backend for backend in self._retired if not backend.idle]
        for backend in closing:
            await asyncio.shield(asyncio.ensure_future(backend.close()))

    async def docker(self) -> DockerBackend:
        """Return a docker backend that is alive."""
        from .docker_backend import DockerBackend

        async with self._lock:
            if self._docker is not None and not self._docker.alive:
                self._retired.append(self._docker)
                self._docker = None
            await self._close_idle()
            if self._docker is None:
                self._docker = await DockerBackend.start()
            return self._docker

    async def _close(self) -> None:
        backends = [*self._zygotes.values(), *self._retired]
        self._zygotes, self._retired = {}, []
        docker, self._docker = self._docker, None
        await asyncio.gather(
            *(backend.close() for backend in backends), *([docker.close()] if docker is not None else [])
        )


# One value for each event loop. A weak reference, since the value leads to the loop, and would keep it.
_shared: RunVar[weakref.ref[_SharedBackends]] = RunVar("supdist sandbox backends")


def _check_event_loop() -> None:
    # None where the caller's event loop was started by the process that forked this one.
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        raise SandboxError(
            "no event loop of this process runs here; in a forked child, start one with asyncio.run()"
        ) from error


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


class _BackendUse(AbstractAsyncContextManager[_BackendSource]):
    # A class: asyncio closes the generators of an event loop that ends all at once, and not in their order.

    def __init__(self, config: SandboxConfig) -> None:
        self._config = config
        self._shared: _SharedBackends | None = None

    async def __aenter__(self) -> _BackendSource:
        config = self._config
        _check_config(config)
        _check_event_loop()
        if config.packages is not None:
            # Made absolute now: at a reset the process may have another current directory.
            config = config.model_copy(update={"packages": find_packages(config.packages).path})
        shared = self._shared = await _SharedBackends.of_this_loop()
        try:
            source = _BackendSource(shared, config)
            await source.find()
        except BaseException:
            await shared.leave()
            raise
        return source

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            await shared.leave()


class SandboxRuntime:
    """Keeps this event loop's zygotes and containers alive: the next sandbox costs only a fork.

    Raises:
        SandboxUnavailable: this machine has no such backend.
        TaskError: the packages cannot be used.
    """

    def __init__(self, config: SandboxConfig | None = None) -> None:
        self._use = _BackendUse(SandboxConfig() if config is None else config)

    async def __aenter__(self) -> SandboxRuntime:
        with translate_shortage("Sandboxes cannot be started"):
            await self._use.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._use.__aexit__(kind, error, trace)


@without_limits
@asynccontextmanager
async def open_sandbox(
    config: SandboxConfig | None = None,
    *,
    context: object = NO_CONTEXT,
    query: str | None = None,
    on_call: OnCall | None = None,
    tools: Mapping[str, Tool] | Toolbox | None = None,
    on_tool: Callable[[ToolUse], None] | None = None,
) -> AsyncGenerator[Sandbox]:
    """Open a sandbox, and close it at the end of the block.

    Args:
        context: the code's ``context``: a str, list, dict or other plain data.
        query: the code's ``query``. With it or ``on_call``, the code has ``FINAL``, its names are restored
            before each cell, and it cannot call ``eval``, ``exec``, ``compile`` and ``input``.
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
    async with AsyncExitStack() as stack:
        with translate_shortage("The sandbox cannot be opened"):
            calls = ToolCalls(Toolbox.of(tools), on_tool)
            source = await stack.enter_async_context(_BackendUse(config))
            has_context = context is not NO_CONTEXT
            context = context if has_context else ""
            setup = GuestSetup(config, config.session_limits(), context, has_context, query, on_call, calls)
            sandbox = await Sandbox.open(source.find, setup)
        try:
            yield sandbox
        finally:
            if sandbox.is_ours:
                # Shielded, as above.
                await asyncio.shield(asyncio.ensure_future(sandbox.close()))


# ``object``, since a caller without a type checker may pass anything.
def _check_config(config: object) -> None:
    if not isinstance(config, SandboxConfig):
        reject("config", config, "a SandboxConfig or None", 'give SandboxConfig(memory="1GiB", timeout=60)')


def _check_query(query: object) -> None:
    if query is not None and not isinstance(query, str):
        reject("query", query, "text or None")


@asynccontextmanager
async def keep_backends() -> AsyncGenerator[None]:
    """Keep the zygotes and containers that sandboxes of this event loop start."""
    shared = await _SharedBackends.of_this_loop()
    try:
        yield
    finally:
        await shared.leave()
