"""Start the zygote, order shims from it, and exchange messages with them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import IO

from ...sandbox_image import protocol
from ..errors import LocalProtocolError, SandboxLost, SandboxUnavailable
from ..jail import rootfs
from ..slices import SLICE, in_slices
from .context import ContextMemory
from .diagnostics import setup_error_for
from .long_messages import decode_long
from .router import Router

Receiver = Callable[[protocol.FromShim | protocol.ShimExit], None]

_START_SECONDS = 30.0
_STOP_SECONDS = 5.0
_PACKET_BYTES = 64 << 10
_LAST_MESSAGES_SECONDS = 2.0
_LAST_MESSAGES_OF_KILLED_SECONDS = 0.1
_SOCKET_PATH_CHARS = 90
# Orders of a burst wait in the socket.
_CONTROL_BUFFER = 4 << 20


class ZygoteClient:
    """The engine's end of one zygote process and its shims, on one event loop. Create it with ``start``."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        control: socket.socket,
        router: Router,
        shims: _Shims,
        packages: str | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._control = control
        self._router = router
        self._shims = shims
        self._packages = packages
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._alive = True
        self.contexts = ContextMemory()
        self._loop.add_reader(control, self._read_control)

    @classmethod
    async def start(cls, packages: str | None = None, *, contexts: str | None = None) -> ZygoteClient:
        """Start the process and wait until it is ready.

        Args:
            packages: the real path of a folder to import from.
            contexts: the context folder of containers, which the zygote removes at its end. With it only
                ``attach`` works.

        Raises:
            SandboxUnavailable: the isolation does not work here.
            TaskError: sandboxes cannot use the packages.
        """
        with contextlib.ExitStack() as undo:
            folder = _make_socket_folder()
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            path = f"{folder}/engine"
            shims = _Shims()
            router = Router.listen(path, shims.deliver, shims.disconnected)
            undo.callback(router.close)
            control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(control.close)
            control.setblocking(False)
            control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CONTROL_BUFFER)
            with theirs, tempfile.TemporaryFile() as stderr:
                if contexts is not None:
                    command = rootfs.command_for_containers(theirs.fileno(), path, contexts)
                else:
                    command = rootfs.command(theirs.fileno(), path, packages)
                process = _start_process(command, theirs, stderr)
                undo.callback(process.wait)
                undo.callback(process.kill)
                zygote = cls(process, control, router, shims, packages)
                undo.callback(zygote._close_control)
                theirs.close()
                await zygote._wait_ready(stderr)
            # The zygote has mounted or opened the socket's file. Removed now, a kill leaves nothing on disk.
            shutil.rmtree(folder)
            undo.pop_all()
            return zygote

    @property
    def alive(self) -> bool:
        """Whether it can fork sandboxes."""
        return self._alive

    @property
    def idle(self) -> bool:
        """Whether it has no sandbox in use."""
        return not self._shims

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
        """
        return self._order(receiver, lambda shim_id: protocol.Spawn(shim_id, limits, resources), context_fd)

    def attach(
        self, receiver: Receiver, limits: protocol.SessionLimits, stream_fd: int, groups: dict[str, str]
    ) -> bytes:
        """Fork a shim for a guest in a container; return its id.

        Raises:
            SandboxLost: the zygote is gone.
        """
        return self._order(receiver, lambda shim_id: protocol.Attach(shim_id, limits, groups), stream_fd)

    def _order(
        self, receiver: Receiver, order: Callable[[bytes], protocol.Spawn | protocol.Attach], fd: int
    ) -> bytes:
        shim_id = b"s" + os.urandom(12)
        self._shims.add(shim_id, receiver)
        try:
            socket.send_fds(self._control, [protocol.encode(order(shim_id))], [fd])
        except OSError as error:
            self._shims.forget(shim_id)
            raise SandboxLost("the process that forks sandboxes is gone") from error
        return shim_id

    def send(self, shim_id: bytes, message: protocol.ToShim) -> None:
        """Send to a shim, if it is connected.

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

    def send_pieces(self, shim_id: bytes, pieces: Sequence[bytes]) -> None:
        """Send an encoded message that is long, and so comes in pieces."""
        self._router.send_pieces(shim_id, pieces)

    def abandon(self, shim_id: bytes) -> None:
        """Let the zygote kill a shim. Its exit is reported."""
        with contextlib.suppress(OSError):
            self._control.send(protocol.encode(protocol.Abandon(shim_id)))

    def forget(self, shim_id: bytes) -> None:
        """Ignore further messages of a shim."""
        self._shims.forget(shim_id)

    async def close(self) -> None:
        """End the process and all its sandboxes, and wait for it."""
        self._alive = False
        self._close_control()
        if not await self._wait_exit(_STOP_SECONDS):
            self._process.kill()
            await self._wait_exit(_STOP_SECONDS)
        self._router.close()
        self.contexts.close()

    async def _wait_ready(self, stderr: IO[bytes]) -> None:
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._ready
        except (TimeoutError, SandboxLost) as error:
            stderr.seek(0)
            text = stderr.read(2000).decode(errors="replace").strip()
            raise SandboxUnavailable(
                "The process that forks sandboxes did not start", f"Its stderr: {text or 'nothing'!r}"
            ) from error

    async def _wait_exit(self, seconds: float) -> bool:
        # Without a thread: a user's models may hold all of them.
        ended, pidfd = asyncio.Event(), os.pidfd_open(self._process.pid)
        self._loop.add_reader(pidfd, ended.set)
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
        self._process.wait()
        return True

    def _close_control(self) -> None:
        if self._control.fileno() >= 0:
            self._loop.remove_reader(self._control)
            self._control.close()

    def _read_control(self) -> None:
        try:
            packet = self._control.recv(_PACKET_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            packet = b""
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

    def _fail_start(self, error: Exception) -> None:
        if not self._ready.done():
            self._ready.set_exception(error)

    def _report_death(self) -> None:
        self._alive = False
        self._close_control()
        self._fail_start(SandboxLost("the process that forks sandboxes ended"))
        # Its shims die with it, and their guests with them.
        self._shims.all_killed()


@dataclass(slots=True)
class _Shim:
    receiver: Receiver
    # Then all its messages are delivered.
    is_disconnected: bool = False
    end: protocol.ShimExit | None = None


class _Shims:
    def __init__(self) -> None:
        self._shims: dict[bytes, _Shim] = {}

    def __len__(self) -> int:
        return len(self._shims)

    def add(self, shim_id: bytes, receiver: Receiver) -> None:
        self._shims[shim_id] = _Shim(receiver)

    def forget(self, shim_id: bytes) -> None:
        self._shims.pop(shim_id, None)

    def deliver(self, shim_id: bytes, payload: bytes) -> Coroutine[object, object, None] | None:
        shim = self._shims.get(shim_id)
        if shim is None:
            return None
        if len(payload) > SLICE:
            return self._deliver_long(shim_id, payload)
        shim.receiver(protocol.decode_from_shim(payload))
        return None

    async def _deliver_long(self, shim_id: bytes, payload: bytes) -> None:
        for message in await in_slices(decode_long(payload)):
            # It may have been forgotten meanwhile.
            shim = self._shims.get(shim_id)
            if shim is not None:
                shim.receiver(message)

    def disconnected(self, shim_id: bytes) -> None:
        shim = self._shims.get(shim_id)
        if shim is None:
            return
        shim.is_disconnected = True
        if shim.end is not None:
            self._report_exit(shim.end)

    def exited(self, end: protocol.ShimExit) -> None:
        shim = self._shims.get(end.session)
        if shim is None:
            return
        shim.end = end
        if shim.is_disconnected:
            self._report_exit(end)
            return
        # The receiver needs its last messages first, which say more than its wait status. A shim that was
        # killed may never have connected.
        seconds = _LAST_MESSAGES_SECONDS if end.status == 0 else _LAST_MESSAGES_OF_KILLED_SECONDS
        asyncio.get_running_loop().call_later(seconds, self._report_exit, end)

    def not_forked(self, shim_id: bytes, code: int) -> None:
        shim = self._shims.pop(shim_id, None)
        if shim is not None:
            shim.receiver(protocol.SetupFailed("fork", code))
            shim.receiver(protocol.ShimExit(shim_id, 0))

    def all_killed(self) -> None:
        shims, self._shims = self._shims, {}
        for shim_id, shim in shims.items():
            shim.receiver(protocol.ShimExit(shim_id, 9))

    def _report_exit(self, end: protocol.ShimExit) -> None:
        shim = self._shims.pop(end.session, None)
        if shim is not None:
            shim.receiver(end)


def _make_socket_folder() -> str:
    # The process id in the name: if the engine is killed before its zygote runs, the folder stays.
    prefix = f"supdist-{os.getpid()}-"
    folder = tempfile.mkdtemp(prefix=prefix)
    # A socket's path has at most 108 bytes (unix(7)).
    if len(folder) > _SOCKET_PATH_CHARS:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix=prefix, dir="/tmp")
    return folder


def _start_process(command: list[str], control: socket.socket, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    # Not with asyncio, which needs a child watcher.
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        pass_fds=[control.fileno()],
        env={"LANG": "C.UTF-8"},
        cwd="/",
        # A terminal's Ctrl-C is for the engine to handle.
        start_new_session=True,
    )
