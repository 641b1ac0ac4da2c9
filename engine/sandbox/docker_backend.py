"""The docker backend: guests in containers, under runc or gVisor."""

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
from ..write_failures import remedy_for, sentence
from .backend import Backend, Guest
from .config import GVISOR, SandboxConfig
from .container_settings import Image
from .containers import Daemon
from .context import encode_context
from .context_files import ContextFiles, make_folder
from .diagnostics import translate_shortage
from .packages import Packages, container_mounts, find_packages
from .pool import Pool, PreparedContainer, prepare_container
from .shims import Receiver
from .zygote import ZygoteClient

T = TypeVar("T")

_THREADS = 16
_ASK_SECONDS = 8.0
_REMOVE_SECONDS = 30.0
_MOST_IN_A_FRAME = protocol.MAX_FRAME_BYTES - 1024
# These ends mean that the guest died, unless the engine interrupted its cell. Any other end is the shim's
# decision, and the container may still run.
_GUEST_DIED = (Outcome.CRASHED, Outcome.KILLED)


class DockerBackend(Backend):
    """Opens guests in containers of one daemon."""

    def __init__(self, daemon: Daemon, folder: str, zygote: ZygoteClient) -> None:
        self.zygote = zygote
        self._daemon = daemon
        self._folder = folder
        self._contexts = ContextFiles(folder)
        self._tasks: set[asyncio.Future[Any]] = set()
        self._pools: dict[SandboxConfig, Pool] = {}
        self._images: dict[tuple[str, str | None], Image] = {}
        self._packages: dict[Packages, list[tuple[str, str]]] = {}
        self._writing = asyncio.Lock()
        # Two limiters: a removal must not wait for a start.
        self._requests, self._removals = CapacityLimiter(_THREADS), CapacityLimiter(_THREADS)

    @classmethod
    async def start(cls) -> DockerBackend:
        """Connect to the daemon, remove what dead engines left, and start a zygote for shims.

        Raises:
            SandboxUnavailable: there is no usable daemon.
        """
        async with contextlib.AsyncExitStack() as undo:
            daemon = await to_thread.run_sync(Daemon.connect)
            undo.callback(daemon.close)
            await to_thread.run_sync(daemon.sweep)
            with translate_shortage("A folder for the contexts of containers cannot be made"):
                folder = await to_thread.run_sync(make_folder)
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            zygote = await ZygoteClient.start(contexts=folder)
            # From here the zygote removes the folder at its end.
            undo.pop_all()
        return cls(daemon, folder, zygote)

    @property
    def alive(self) -> bool:
        """See ``Backend.alive``."""
        return self.zygote.alive and not self.zygote.is_stopped

    @property
    def idle(self) -> bool:
        """Whether it has no guest in use."""
        return self.zygote.idle

    async def close(self) -> None:
        """Remove unused containers, and end the shims."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            await pool.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REMOVE_SECONDS):
                # In a loop: a cancelled start adds a removal when it ends.
                while self._tasks:
                    await asyncio.wait(list(self._tasks))
        await self.zygote.close()
        self._daemon.close()
        # The zygote has removed it, unless it was killed.
        shutil.rmtree(self._folder, ignore_errors=True)

    async def prepare(self, config: SandboxConfig) -> Image:
        """Check that containers of this config can be made, and fill its pool.

        Raises:
            SandboxUnavailable: they cannot.
            TaskError: the packages cannot be used.
        """
        name = config.image or default_tag()
        image = self._images.get((name, config.runtime))
        if image is None:
            image = await self._request(partial(self._daemon.inspect_image, name, config.runtime))
            self._images[name, config.runtime] = image
        if config.packages is not None:
            await self._mounts(config.packages)
        if config.warm and config not in self._pools:
            pool = self._pools[config] = Pool(partial(self._make, config, image), self.remove, config.warm)
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
        prepared = (await pool.take() if pool is not None else None) or await self._make(config, image)
        try:
            load = await self._load(context, prepared)
            return DockerGuest.attach(
                self, prepared, load, receiver, config.session_limits(len(toolbox.host))
            )
        except BaseException:
            self.remove(prepared)
            raise

    async def outcome_of(self, prepared: PreparedContainer) -> Outcome | None:
        """Ask the daemon how a container ended. None: the guest ended by itself.

        Raises:
            SandboxLost: it was killed from outside, or the daemon does not answer.
        """
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                end = await to_thread.run_sync(
                    self._daemon.wait_for_end,
                    prepared.container.id,
                    limiter=self._requests,
                    abandon_on_cancel=True,
                )
        except TimeoutError:
            raise SandboxLost("the Docker daemon does not answer") from None
        if end.out_of_memory:
            return Outcome.OOM
        # Under gVisor a guest can kill its own init, so a kill there does not show who did it.
        if end.was_killed and not prepared.container.image.is_gvisor:
            raise SandboxLost("the sandbox's container was killed from outside the engine")
        return None

    def remove(self, prepared: PreparedContainer) -> asyncio.Future[None]:
        """Start to remove a container."""
        removing = asyncio.ensure_future(
            to_thread.run_sync(prepared.remove, self._daemon, limiter=self._removals)
        )
        return self._keep(removing)

    def _keep(self, future: asyncio.Future[T]) -> asyncio.Future[T]:
        # close() waits for these.
        self._tasks.add(future)
        future.add_done_callback(self._tasks.discard)
        return future

    async def _load(self, context: object, prepared: PreparedContainer) -> protocol.Load:
        if prepared.folder is None:
            kind = await to_thread.run_sync(encode_context, context, buffer := io.BytesIO())
            if buffer.tell() > _MOST_IN_A_FRAME:
                raise TaskError(
                    f"the context has {buffer.tell()} bytes; a Docker daemon on another machine takes "
                    f"at most {_MOST_IN_A_FRAME}. Run the engine beside it, and set DOCKER_HOST to its socket"
                )
            return protocol.Load(kind, "frame", buffer.getvalue())
        try:
            async with self._writing:
                kind = await to_thread.run_sync(self._contexts.put, context, prepared.context_file)
        except OSError as error:
            raise SandboxUnavailable(
                f"The context cannot be written to {self._folder} ({error.strerror})",
                f"{sentence(remedy_for(error, 'let the engine write there'))}.",
            ) from error
        return protocol.Load(kind, "file", b"")

    async def _make(self, config: SandboxConfig, image: Image) -> PreparedContainer:
        packages = [] if config.packages is None else await self._mounts(config.packages)
        prepare = partial(prepare_container, self._daemon, self._folder, config, image, packages)
        # If the caller is cancelled, the container is removed once it is there.
        making = self._keep(asyncio.ensure_future(self._request(prepare)))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(self._remove_made)
            raise

    async def _mounts(self, folder: str) -> list[tuple[str, str]]:
        state = find_packages(folder)
        found = self._packages.get(state)
        if found is None:
            is_remote = not self._daemon.shares_files
            with translate_shortage("The links of the packages cannot be written"):
                found = await self._request(
                    partial(container_mounts, state.path, self._folder, is_remote=is_remote)
                )
            self._packages[state] = found
        return found

    def _remove_made(self, making: asyncio.Future[PreparedContainer]) -> None:
        if not making.cancelled() and making.exception() is None:
            self.remove(making.result())

    async def _request(self, call: Callable[[], T]) -> T:
        return await to_thread.run_sync(call, limiter=self._requests)


_DAEMON = protocol.Enforcement("daemon", "daemon", "daemon")


class DockerGuest(Guest):
    """A guest in a container."""

    def __init__(
        self,
        backend: DockerBackend,
        prepared: PreparedContainer,
        load: protocol.Load,
        receiver: Receiver,
        shim_id: bytes,
    ) -> None:
        container = prepared.container
        super().__init__(
            backend.zygote,
            shim_id,
            load,
            backend=GVISOR if container.image.is_gvisor else "docker",
            # A remote daemon's control groups cannot be seen, so nothing is claimed against it.
            held=_DAEMON if prepared.folder is None and not container.groups else None,
        )
        self._backend = backend
        self._prepared = prepared
        self._receiver = receiver
        self._asking: asyncio.Task[None] | None = None
        self._was_interrupted = False
        self.send = partial(self._send, self.send)
        self._held: list[protocol.FromShim | ShimExit] = []
        self._removing: asyncio.Future[None] | None = None

    @classmethod
    def attach(
        cls,
        backend: DockerBackend,
        prepared: PreparedContainer,
        load: protocol.Load,
        receiver: Receiver,
        limits: protocol.SessionLimits,
    ) -> DockerGuest:
        """Give the container's stream to a shim.

        Raises:
            SandboxLost: the zygote has ended.
        """
        guest: DockerGuest

        def receive(message: protocol.FromShim | ShimExit) -> None:
            guest.receive(message)

        stream = prepared.container.stream
        # The event loop delivers the first message, so it finds ``guest`` set.
        shim_id = backend.zygote.attach(receive, limits, stream.fileno(), prepared.container.groups)
        stream.close()
        guest = cls(backend, prepared, load, receiver, shim_id)
        return guest

    def _send(self, send: Callable[[protocol.ToShim], int], message: protocol.ToShim) -> int:
        if isinstance(message, (protocol.Execute, protocol.Interrupt)):
            self._was_interrupted = isinstance(message, protocol.Interrupt)
        return send(message)

    async def discard(self) -> None:
        """See ``Guest.discard``."""
        await super().discard()
        await asyncio.wait([self._remove()], timeout=_REMOVE_SECONDS)

    def receive(self, message: protocol.FromShim | ShimExit) -> None:
        """Handle a message of the shim."""
        # Only the daemon knows why the stream ended; messages wait for its answer.
        if self._asking is not None:
            self._held.append(message)
        elif isinstance(message, CellEnd) and message.state_lost and self._has_died(message.outcome):
            self._asking = asyncio.ensure_future(self._ask(message))
        else:
            self._deliver(message)

    def _has_died(self, outcome: Outcome) -> bool:
        return outcome in _GUEST_DIED and not (outcome is Outcome.KILLED and self._was_interrupted)

    async def _ask(self, end: CellEnd) -> None:
        try:
            outcome = await self._backend.outcome_of(self._prepared)
        except SandboxLost as lost:
            self._held = [Exit(Outcome.KILLED, str(lost))]
        else:
            if outcome is not None:
                end = structs.replace(
                    end, outcome=outcome, detail="the kernel killed the sandbox: its memory was used up"
                )
            self._held.insert(0, end)
        self._asking = None
        held, self._held = self._held, []
        for message in held:
            self._deliver(message)

    def _deliver(self, message: protocol.FromShim | ShimExit) -> None:
        if isinstance(message, protocol.Ready):
            self._prepared.hide_context()
        elif isinstance(message, (Exit, ShimExit)):
            self._remove()
        self._receiver(message)

    def _remove(self) -> asyncio.Future[None]:
        if self._removing is None:
            self._removing = self._backend.remove(self._prepared)
        return self._removing
