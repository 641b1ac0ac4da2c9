"""Guests in containers of a Docker daemon: runc's, or gVisor's.

A container is made for one sandbox and removed with it. Its first process is the guest's init; the daemon attaches its
stdio, and a shim gets the connection. The context comes as a file in a folder that only this container sees, read-only.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from msgspec import structs

from ...sandbox_image import protocol
from ...sandbox_image.image import default_tag
from ...sandbox_image.protocol import CellEnd, Exit, Outcome, ShimExit
from ..errors import SandboxLost, SandboxUnavailable, TaskError
from ..toolbox.toolbox import Toolbox
from .backend import Backend, Guest
from .config import GVISOR, SandboxConfig
from .containers import Daemon, Image
from .context import encode_context
from .context_files import ContextFiles, make_folder
from .pool import Place, Pool, make_place
from .zygote import Receiver, Zygote

T = TypeVar("T")

_THREADS = 16
"""Requests to the daemon at once, apart from removals, which must never wait for a start."""
_ASK_SECONDS = 8.0
_REMOVE_SECONDS = 30.0
_MOST_IN_A_FRAME = protocol.MAX_FRAME_BYTES - 1024


class DockerBackend(Backend):
    """A daemon, the zygote of the shims, the folder with the contexts, and the containers that are kept ready."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Future[Any]] = set()
        self._pools: dict[SandboxConfig, Pool] = {}
        self._images: dict[tuple[str, str | None], Image] = {}
        self._writing = asyncio.Lock()
        self._requests, self._removals = CapacityLimiter(_THREADS), CapacityLimiter(_THREADS)

    @property
    def alive(self) -> bool:
        """Whether sandboxes can be had from it."""
        return self._zygote.alive

    async def start(self) -> None:
        """Get in touch with the daemon, and remove what dead engines left.

        Raises:
            SandboxUnavailable: there is no daemon that will do.
        """
        async with contextlib.AsyncExitStack() as undo:
            self._daemon = await self._in_thread(Daemon.connect)
            undo.callback(self._daemon.close)
            await self._in_thread(self._daemon.sweep)
            self._folder = await to_thread.run_sync(make_folder)
            undo.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self._contexts = ContextFiles(self._folder)
            self._zygote = Zygote(contexts=self._folder)
            await self._zygote.start()
            undo.pop_all()

    async def close(self) -> None:
        """Remove the containers that nobody took, and end the shims."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            await pool.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REMOVE_SECONDS):
                while self._tasks:  # what was made for nobody is removed by another one
                    await asyncio.wait(list(self._tasks))
        await self._zygote.close()  # which removes the folder
        self._daemon.close()

    async def prepare(self, config: SandboxConfig) -> Image:
        """Look whether such containers can be had, and begin to make those that are to be kept ready.

        Raises:
            SandboxUnavailable: they cannot.
        """
        name = config.image or default_tag()
        image = self._images.get((name, config.runtime))
        if image is None:
            image = await self._in_thread(partial(self._daemon.look_at, name, config.runtime))
            self._images[name, config.runtime] = image
        if config.warm and config not in self._pools:
            pool = self._pools[config] = Pool(
                partial(self._make, config, image), self.throw_away, config.warm
            )
            pool.fill()
        return image

    async def open(
        self, receiver: Receiver, config: SandboxConfig, context: object, toolbox: Toolbox
    ) -> Guest:
        """See ``Backend.open``."""
        image = await self.prepare(config)
        if toolbox.guest:
            image.check_python()
        pool = self._pools.get(config)
        place = (await pool.take() if pool is not None else None) or await self._make(config, image)
        try:
            load = await self._bring(context, place)
            guest = DockerGuest(self, self._zygote, place, load, receiver)
            guest.walls = GVISOR if image.is_gvisor else "docker"
            guest.limited = bool(place.container.groups) or not self._daemon.shares_files
            guest.attach(config.session_limits(len(toolbox.host)))
        except BaseException:
            self.throw_away(place)
            raise
        return guest

    async def ended(self, place: Place, walls: str) -> Outcome | None:
        """What the daemon has to say about the end of a container whose stream has ended; None where init did it itself.

        Under gVisor a guest can kill its own init, so that a kill tells nothing of who did it.

        Raises:
            SandboxLost: it was ended from outside, or the daemon does not tell.
        """
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                end = await to_thread.run_sync(
                    self._daemon.ended, place.container.id, limiter=self._requests, abandon_on_cancel=True
                )
        except TimeoutError:
            raise SandboxLost("the Docker daemon does not answer") from None
        if end.out_of_memory:
            return Outcome.OOM
        if end.was_killed and walls != GVISOR:
            raise SandboxLost("its container was killed from outside")
        return None

    def throw_away(self, place: Place) -> asyncio.Future[None]:
        """Have a container killed and removed, and its folder."""
        removing = asyncio.ensure_future(
            to_thread.run_sync(place.remove, self._daemon, limiter=self._removals)
        )
        return self._keep(removing)

    def _keep(self, future: asyncio.Future[T]) -> asyncio.Future[T]:
        """Remember what is to be done before the end."""
        self._tasks.add(future)
        future.add_done_callback(self._tasks.discard)
        return future

    async def _bring(self, context: object, place: Place) -> protocol.Load:
        if place.folder is None:
            kind = encode_context(context, buffer := io.BytesIO())
            if buffer.tell() > _MOST_IN_A_FRAME:
                raise TaskError(
                    f"the context has {buffer.tell()} bytes; a Docker daemon on another machine can be sent at most "
                    f"{_MOST_IN_A_FRAME}. Run the engine beside it, and set DOCKER_HOST to its socket"
                )
            return protocol.Load(kind, "frame", buffer.getvalue())
        try:
            async with self._writing:
                kind = await to_thread.run_sync(self._contexts.put, context, place.context_file)
        except OSError as error:
            raise SandboxUnavailable(
                f"The context cannot be written to {self._folder} ({error.strerror})", "Make room there."
            ) from error
        return protocol.Load(kind, "file", b"")

    async def _make(self, config: SandboxConfig, image: Image) -> Place:
        """A container that runs. One whose making was given up is removed once it is there."""
        making = self._keep(
            asyncio.ensure_future(
                self._in_thread(partial(make_place, self._daemon, self._folder, config, image))
            )
        )
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(self._made_for_nobody)
            raise

    def _made_for_nobody(self, making: asyncio.Future[Place]) -> None:
        if not making.cancelled() and making.exception() is None:
            self.throw_away(making.result())

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await to_thread.run_sync(call, limiter=self._requests)


class DockerGuest(Guest):
    """A guest in a container. Where its stream has ended, the daemon is asked how before anybody hears of it."""

    def __init__(
        self, backend: DockerBackend, zygote: Zygote, place: Place, load: protocol.Load, receiver: Receiver
    ) -> None:
        super().__init__(zygote, b"", load)
        self._backend = backend
        self._place = place
        self._receiver = receiver
        self._asking: asyncio.Task[None] | None = None
        self._held: list[protocol.FromShim | ShimExit] = []
        self._removing: asyncio.Future[None] | None = None

    def attach(self, limits: protocol.SessionLimits) -> None:
        """Give the container's stream to a shim.

        Raises:
            SandboxLost: the zygote is gone.
        """
        stream = self._place.container.stream
        self._session = self._zygote.attach(
            self._receive, limits, stream.fileno(), self._place.container.groups
        )
        stream.close()

    async def discard(self) -> None:
        """See ``Guest.discard``: the container is gone after it."""
        await super().discard()
        await asyncio.wait([self._remove()], timeout=_REMOVE_SECONDS)

    def _remove(self) -> asyncio.Future[None]:
        if self._removing is None:
            self._removing = self._backend.throw_away(self._place)
        return self._removing

    def _receive(self, message: protocol.FromShim | ShimExit) -> None:
        if self._asking is not None:
            self._held.append(message)
        elif isinstance(message, CellEnd) and message.state_lost and message.outcome in _BY_ITSELF:
            self._asking = asyncio.ensure_future(self._ask(message))
        else:
            self._deliver(message)

    async def _ask(self, end: CellEnd) -> None:
        try:
            outcome = await self._backend.ended(self._place, self.walls)
        except SandboxLost as lost:
            self._held = [Exit(Outcome.KILLED, str(lost))]
        else:
            if outcome is not None:
                end = structs.replace(end, outcome=outcome, detail="the kernel killed it for want of memory")
            self._held.insert(0, end)
        self._asking = None
        held, self._held = self._held, []
        for message in held:
            self._deliver(message)

    def _deliver(self, message: protocol.FromShim | ShimExit) -> None:
        if isinstance(message, protocol.Ready):
            self._place.hide_context()
        elif isinstance(message, (Exit, ShimExit)):
            self._remove()
        self._receiver(message)


_BY_ITSELF = (Outcome.CRASHED, Outcome.KILLED)
"""How a cell ends whose guest died; any other end is the shim's own verdict."""
