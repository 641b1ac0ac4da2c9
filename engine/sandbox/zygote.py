"""Start the zygote, order shims from it, and exchange messages with them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable, Sequence

from anyio import to_thread

from ...sandbox_image import protocol
from ..errors import LocalProtocolError, SandboxError, SandboxLost
from ..jail import rootfs
from . import open_zygotes
from .context import ContextMemory
from .diagnostics import did_not_start, setup_error_for, translate_shortage
from .packages import check_links
from .router import Router
from .shims import Receiver, Shims
from .zygote_process import ZygoteProcess

_START_SECONDS = 30
_STOP_SECONDS = 5.0
_PACKET_BYTES = 64 << 10
OTHER_PROCESS = "this sandbox was opened by another process; open another in this one"
_GONE = "the process that forks sandboxes is gone"


class ZygoteClient:
    """The engine's end of one zygote process and its shims, on one event loop. Create it with ``start``."""

    def __init__(self, process: ZygoteProcess, packages: str | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._shims = Shims(self._kill_unknown)
        self._router = Router(self._shims.deliver, self._shims.disconnected, process.streams)
        self._packages = packages
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._takes_orders = True
        self._is_released = False
        self.contexts = ContextMemory()
        self._finalizer = open_zygotes.register(self, process, self.contexts)
        self._loop.add_reader(process.control, self._read_control)

    @classmethod
    async def start(cls, packages: str | None = None, *, contexts: str | None = None) -> ZygoteClient:
        """Start the process and wait until it is ready. If it is killed meanwhile, start it once more.

        Args:
            packages: the real path of a folder to import from.
            contexts: the context folder of containers, which the zygote removes at its end. With it only
                ``attach`` works.

        Raises:
            SandboxUnavailable: the isolation does not work here, or the machine is short of something.
            TaskError: sandboxes cannot use the packages.
        """
        open_zygotes.free_dropped()
        try:
            return await cls._start(packages, contexts)
        except SandboxLost:
            pass
        try:
            return await cls._start(packages, contexts)
        except SandboxLost as error:
            raise did_not_start(str(error)) from error

    @classmethod
    async def _start(cls, packages: str | None, contexts: str | None) -> ZygoteClient:
        checked = None if packages is None else await to_thread.run_sync(_checked, packages)

        def command(control: int) -> list[str]:
            if contexts is not None:
                return rootfs.command_for_containers(control, contexts)
            return rootfs.command(control, checked)

        with translate_shortage("The process that forks sandboxes cannot be started"):
            process = ZygoteProcess.start(command)
            zygote = cls(process, packages)
            try:
                await zygote._wait_ready()
            except BaseException:
                # Not killed, unless it does not end: it removes the control groups of what it built.
                await asyncio.shield(asyncio.ensure_future(zygote.close()))
                raise
        return zygote

    @property
    def alive(self) -> bool:
        """Whether it can fork sandboxes."""
        return self._takes_orders

    @property
    def idle(self) -> bool:
        """Whether it has no sandbox in use."""
        return not self._shims

    @property
    def is_stopped(self) -> bool:
        """Whether the process was stopped, and so takes no orders."""
        return self._process.is_stopped

    @property
    def is_dropped(self) -> bool:
        """Whether its event loop was closed before it was."""
        return self._loop.is_closed() and not self._is_released

    @property
    def has_running_loop(self) -> bool:
        """Whether its event loop runs, if only in another thread."""
        return self._loop.is_running()

    def check_usable(self) -> None:
        """Check that the caller is in the process and event loop that started it.

        Raises:
            SandboxError: it is not.
        """
        if not self.is_ours:
            raise SandboxError(OTHER_PROCESS)
        if _running_loop() is not self._loop:
            raise SandboxError("this sandbox was opened in another event loop; open another in this one")

    @property
    def is_ours(self) -> bool:
        """Whether this process started it, and is not a fork of that one."""
        return not self._is_released or self._process.is_ours

    def spawn(
        self,
        receiver: Receiver,
        limits: protocol.SessionLimits,
        resources: protocol.ResourceLimits,
        context_fd: int,
    ) -> bytes:
        """Fork a shim with a sandbox; return its id.

        Raises:
            SandboxLost: the zygote is gone.
            OSError: no descriptor is left, or the zygote has too many orders (``is_busy``).
        """
        return self._order(receiver, lambda shim_id: protocol.Spawn(shim_id, limits, resources), context_fd)

    def attach(
        self, receiver: Receiver, limits: protocol.SessionLimits, stream_fd: int, groups: dict[str, str]
    ) -> bytes:
        """Fork a shim for a guest in a container; return its id. Raises as ``spawn``."""
        return self._order(receiver, lambda shim_id: protocol.Attach(shim_id, limits, groups), stream_fd)

    def _order(
        self, receiver: Receiver, order: Callable[[bytes], protocol.Spawn | protocol.Attach], fd: int
    ) -> bytes:
        if not self._takes_orders:
            raise SandboxLost(_GONE)
        shim_id = b"s" + os.urandom(12)
        ours, theirs = socket.socketpair()
        with theirs:
            # If the order fails, the end of the stream drops it.
            self._router.add(ours)
            try:
                socket.send_fds(
                    self._process.control, [protocol.encode(order(shim_id))], [fd, theirs.fileno()]
                )
            except (BrokenPipeError, ConnectionResetError) as error:
                self._takes_orders = False
                raise SandboxLost(_GONE) from error
        self._shims.add(shim_id, receiver)
        return shim_id

    def send(self, shim_id: bytes, message: protocol.ToShim) -> int:
        """Send to a shim, if it is connected; return the bytes of the message.

        Raises:
            LocalProtocolError: the message is too large, or has lone surrogates.
        """
        try:
            payload = protocol.encode(message)
        except UnicodeEncodeError as error:
            raise LocalProtocolError("lone surrogates in a message to the guest") from error
        if len(payload) > protocol.MAX_FRAME_BYTES:
            raise LocalProtocolError(
                f"a message of {len(payload)} bytes; at most {protocol.MAX_FRAME_BYTES} can be sent"
            )
        self._router.send(shim_id, payload)
        return len(payload)

    def send_pieces(self, shim_id: bytes, pieces: Sequence[bytes]) -> None:
        """Send an encoded message that is long, and so comes in pieces."""
        self._router.send_pieces(shim_id, pieces)

    def abandon(self, shim_id: bytes) -> None:
        """Let the zygote kill a shim. Its exit is reported."""
        with contextlib.suppress(OSError):
            self._process.control.send(protocol.encode(protocol.Abandon(shim_id)))

    def forget(self, shim_id: bytes) -> None:
        """Ignore further messages of a shim."""
        self._shims.forget(shim_id)

    def retire(self) -> None:
        """Take no more orders, because the process does not answer. Its other sandboxes go on."""
        self._takes_orders = False
        if self.idle:
            self._process.kill()

    def release(self) -> None:
        """Close all descriptors without the event loop, which is closed or another process's."""
        self._is_released = True
        self._takes_orders = False
        # Called directly: finalizers do nothing at the end of the process.
        self._finalizer.detach()
        open_zygotes.release(self._process, self.contexts)

    async def close(self) -> None:
        """End the process and all its sandboxes, and wait for it."""
        self._takes_orders = False
        if self._is_released:
            return
        self._close_control()
        # A stopped process would not see the end of its socket.
        if self.is_stopped or not await self._wait_exit(_STOP_SECONDS):
            self._process.kill()
            await self._wait_exit(_STOP_SECONDS)
        self._router.close()
        self._shims.all_killed()
        self.release()

    async def _wait_ready(self) -> None:
        for _ in range(_START_SECONDS):
            # Not one long wait: the time counts only while this event loop runs.
            await asyncio.wait([self._ready], timeout=1)
            if self._ready.done() or self.is_stopped:
                break
        try:
            if self._ready.done():
                return self._ready.result()
        except SandboxLost:
            # Its end may come a moment after that of its socket.
            await self._wait_exit(_STOP_SECONDS)
        raise SandboxLost(self._process.failure())

    async def _wait_exit(self, seconds: float) -> bool:
        # Without a thread: a user's models may hold all of them.
        ended = asyncio.Event()
        self._loop.add_reader(self._process.pidfd, ended.set)
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            self._loop.remove_reader(self._process.pidfd)
        return self._process.is_reaped()

    def _close_control(self) -> None:
        if self._process.control.fileno() >= 0:
            self._loop.remove_reader(self._process.control)
            self._process.close_control()

    def _read_control(self) -> None:
        try:
            packet = self._process.control.recv(_PACKET_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            packet = b""
        except OSError:
            # Closed in this process, which is a fork of the engine's.
            return
        if not packet:
            self._report_death()
            return
        match protocol.decode_from_zygote(packet):
            case protocol.ZygoteReady():
                if not self._ready.done():
                    self._ready.set_result(None)
            case protocol.SetupFailed(step, code):
                self._fail_start(setup_error_for(step, code, self._packages))
            case protocol.NotForked(shim_id, code):
                self._shims.not_forked(shim_id, code)
            case protocol.ShimExit() as end:
                self._shims.exited(end)

    def _kill_unknown(self, shim_id: bytes) -> None:
        # Its order was given up, and the zygote took it all the same.
        self._router.send(shim_id, protocol.encode(protocol.Kill()))

    def _fail_start(self, error: Exception) -> None:
        if not self._ready.done():
            self._ready.set_exception(error)
            # Retrieved here too: after a cancelled start no other code does, and asyncio would log it.
            self._ready.exception()

    def _report_death(self) -> None:
        self._takes_orders = False
        self._close_control()
        self._fail_start(SandboxLost(_GONE))
        # Its shims die with it, and their guests with them.
        self._shims.all_killed()


def is_busy(error: OSError) -> bool:
    """Return whether an order failed only because many others wait in the zygote's socket."""
    # The last one: too many descriptors of this user are in flight (unix(7)).
    return error.errno in (errno.EAGAIN, errno.ETOOMANYREFS)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _checked(packages: str) -> rootfs.PackagesFolder:
    source, links = check_links(packages)
    return rootfs.PackagesFolder(source, bool(links.texts))
