"""Guests in containers of a Docker daemon: runc's, or gVisor's.

A container is made for one sandbox and removed with it. Its first process is the guest's init; the daemon attaches its
stdio, and a shim gets the connection. The context comes as a file in a folder that only this container sees, read-only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from msgspec import structs

from ...sandbox_image import protocol
from ...sandbox_image.image import default_tag
from ...sandbox_image.protocol import CellEnd, Exit, Outcome, ShimExit
from ..errors import SandboxError, SandboxLost, TaskError
from ..tools import Toolbox
from .backend import Backend, Guest
from .config import GVISOR, SandboxConfig
from .containers import Container, Daemon, Image
from .context import ContextFiles, encode_context
from .lease import has_ended, own_lease
from .zygote import Receiver, Zygote

T = TypeVar("T")

_THREADS = 16
"""Requests to the daemon at once, apart from removals, which must never wait for a start."""
_ASK_SECONDS = 8.0
_REMOVE_SECONDS = 30.0
_MOST_IN_A_FRAME = protocol.MAX_FRAME_BYTES - 1024
_FOLDER = "supdist-contexts-"
_LEASE = "lease"
_MEMORY = "/dev/shm"
_ENOUGH_BYTES = 1 << 30


class DockerBackend(Backend):
    """A daemon, the zygote of the shims, the folder with the contexts, and the containers that are kept ready."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Future[Any]] = set()
        self._pools: dict[SandboxConfig, _Pool] = {}
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
        self._daemon = await self._in_thread(Daemon.connect)
        await self._in_thread(self._daemon.sweep)
        self._folder = await to_thread.run_sync(_make_folder)
        self._contexts = ContextFiles(self._folder)
        self._zygote = Zygote(contexts=self._folder)
        try:
            await self._zygote.start()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

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
            pool = self._pools[config] = _Pool(
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
            guest.attach(config.limits(len(toolbox.host)))
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
            encoded = encode_context(context)
            if len(encoded.data) > _MOST_IN_A_FRAME:
                raise TaskError(
                    f"the context has {len(encoded.data)} bytes; a Docker daemon on another machine can be sent at most "
                    f"{_MOST_IN_A_FRAME}. Run the engine beside it, and set DOCKER_HOST to its socket"
                )
            return protocol.Load(encoded.kind, "frame", encoded.data)
        async with self._writing:
            kind = await to_thread.run_sync(self._contexts.put, context, _context_in(place.folder))
        return protocol.Load(kind, "file", b"")

    async def _make(self, config: SandboxConfig, image: Image) -> Place:
        """A container that runs. One whose making was given up is removed once it is there."""
        making = self._keep(
            asyncio.ensure_future(
                self._in_thread(partial(_make_place, self._daemon, self._folder, config, image))
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

    def attach(self, limits: protocol.Limits) -> None:
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


class _Pool:
    """Containers that run and that nobody has used."""

    def __init__(
        self,
        make: Callable[[], Awaitable[Place]],
        throw_away: Callable[[Place], object],
        size: int,
    ) -> None:
        self._make = make
        self._throw_away = throw_away
        self._size = size
        self._ready: list[Place] = []
        self._making: set[asyncio.Task[None]] = set()
        self._waiting = 0

    async def take(self) -> Place | None:
        """One that is alive, now or as soon as it is made; None where others wait for all that are being made."""
        place = None
        while place is None:
            while self._ready and place is None:
                place = self._ready.pop(0)
                if not place.container.is_alive:
                    self._throw_away(place)
                    place = None
            if place is None:
                if self._waiting >= len(self._making):
                    break
                self._waiting += 1
                try:
                    await asyncio.wait(list(self._making), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    self._waiting -= 1
        self.fill()
        return place

    def fill(self) -> None:
        """Begin to make what is missing."""
        for _ in range(self._size - len(self._ready) - len(self._making)):
            task = asyncio.ensure_future(self._add())
            self._making.add(task)
            task.add_done_callback(self._making.discard)

    async def close(self) -> None:
        """Throw all of them away."""
        for task in list(self._making):
            task.cancel()
        if self._making:
            await asyncio.wait(list(self._making))
        for place in self._ready:
            self._throw_away(place)
        self._ready.clear()

    async def _add(self) -> None:
        try:
            self._ready.append(await self._make())
        except SandboxError:
            return  # the next sandbox makes its own, and says what is wrong


class Place:
    """A container, and the folder of this machine that it sees; None where the daemon is on another."""

    def __init__(self, container: Container, folder: str | None) -> None:
        self.container = container
        self.folder = folder

    def hide_context(self) -> None:
        """Take away the file that the guest has read: others may have the same one, and a lock on it would tell them."""
        if self.folder is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_context_in(self.folder))

    def remove(self, daemon: Daemon) -> None:
        """Kill and remove it, with the folder. Blocks."""
        self.container.stream.close()
        daemon.remove(self.container.id)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _make_place(daemon: Daemon, parent: str, config: SandboxConfig, image: Image) -> Place:
    folder = tempfile.mkdtemp(dir=parent) if daemon.shares_files else None
    try:
        if folder is not None:
            os.chmod(folder, 0o755)  # noqa: S103 - the guest is another user; on the host, its parent is closed
        return Place(daemon.start(image, config, folder), folder)
    except BaseException:
        if folder is not None:
            os.rmdir(folder)
        raise


def _context_in(folder: str) -> str:
    return os.path.join(folder, os.path.basename(protocol.CONTEXT_FILE))


def _make_folder() -> str:
    """A folder for contexts, with this process's lease; those of dead processes are removed.

    A guest can read the part of its path that lies below its file system's root, so that a memory file system tells
    nothing of the host.
    """
    for other in (path for place in _places() for path in Path(place).glob(f"{_FOLDER}*")):
        if _is_left_over(other):
            shutil.rmtree(other, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=_FOLDER, dir=_places()[0])
    Path(folder, _LEASE).write_text(own_lease())
    return folder


def _places() -> list[str]:
    """Where such folders can be, the best first."""
    places = [tempfile.gettempdir()]
    if os.access(_MEMORY, os.W_OK) and os.path.ismount(_MEMORY):
        room = os.statvfs(_MEMORY)
        places.insert(0 if room.f_bavail * room.f_frsize >= _ENOUGH_BYTES else 1, _MEMORY)
    return places


def _is_left_over(folder: Path) -> bool:
    try:
        return folder.lstat().st_uid == os.geteuid() and has_ended((folder / _LEASE).read_text())
    except OSError:  # no folder, or one that is being made
        return False
