"""The engine's side of the zygote and of the shims: their start, their end, and the messages between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

from ...sandbox_image import protocol
from ..errors import LocalProtocolError, SandboxLost, SandboxUnavailable
from ..jail import rootfs
from .context import ContextMemory
from .diagnostics import failure
from .router import Router

Receiver = Callable[[protocol.FromShim | protocol.ShimExit], None]

_START_SECONDS = 30.0
_STOP_SECONDS = 5.0
_PACKET_BYTES = 64 << 10
_LAST_WORDS_SECONDS = 2.0
_LAST_WORDS_OF_KILLED_SECONDS = 0.1
_SOCKET_PATH_CHARS = 90
_CONTROL_BUFFER = 4 << 20


class Zygote:
    """One zygote process and the ROUTER socket that its shims connect to. Belongs to one event loop.

    Args:
        packages: the real path of a folder that its sandboxes can import from.
        contexts: a folder of what the guests of a container daemon read. With it the zygote builds no walls, takes
            ``attach`` instead of ``spawn``, and removes the folder at its end.
    """

    def __init__(self, packages: str | None = None, *, contexts: str | None = None) -> None:
        self._packages = packages
        self._contexts = contexts
        self.contexts = ContextMemory()
        self._sessions: dict[bytes, _Session] = {}
        self._ready: asyncio.Future[None] | None = None
        self._alive = False

    @property
    def alive(self) -> bool:
        """Whether sandboxes can be had from it."""
        return self._alive

    @property
    def idle(self) -> bool:
        """Whether no sandbox of it is in use."""
        return not self._sessions

    async def start(self) -> None:
        """Start the process and wait until it takes orders.

        Raises:
            SandboxUnavailable: a wall that every sandbox needs cannot be built here.
            TaskError: the packages cannot be shown to sandboxes.
        """
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        with contextlib.ExitStack() as undo:
            # The process in the name: an engine that is killed before its zygote stands leaves the folder.
            prefix = f"supdist-{os.getpid()}-"
            folder = tempfile.mkdtemp(prefix=prefix)
            if len(folder) > _SOCKET_PATH_CHARS:  # the kernel has 108 bytes for a socket's path
                os.rmdir(folder)
                folder = tempfile.mkdtemp(prefix=prefix, dir="/tmp")
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            self._router = Router(f"{folder}/engine", self._hear, self._lose)
            self._router.open()
            undo.callback(self._router.close)
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self._close_control)
            self._control.setblocking(False)
            self._control.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDBUF, _CONTROL_BUFFER
            )  # orders of a burst
            self._loop.add_reader(self._control, self._read_control)
            with theirs, tempfile.TemporaryFile() as complaints:
                self._process = subprocess.Popen(  # noqa: ASYNC220 - a fork and exec; asyncio's way takes a child watcher
                    self._command(theirs.fileno(), f"{folder}/engine"),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=complaints,
                    pass_fds=[theirs.fileno()],
                    env={"LANG": "C.UTF-8"},
                    cwd="/",
                    start_new_session=True,  # a terminal's Ctrl-C is the engine's to handle
                )
                undo.callback(self._end_process)
                theirs.close()
                try:
                    async with asyncio.timeout(_START_SECONDS):
                        await self._ready
                except (TimeoutError, SandboxLost) as error:
                    complaints.seek(0)
                    raise SandboxUnavailable(
                        "The process that forks sandboxes did not start",
                        f"It said: {complaints.read(2000).decode(errors='replace').strip() or 'nothing'!r}",
                    ) from error
            self._alive = True
            # The zygote has the socket's file bound in its own view; nothing on disk is needed any more.
            shutil.rmtree(folder)
            undo.pop_all()

    def _command(self, control_fd: int, socket_file: str) -> list[str]:
        if self._contexts is not None:
            return rootfs.command_for_containers(control_fd, socket_file, self._contexts)
        return rootfs.command(control_fd, socket_file, self._packages)

    def spawn(
        self,
        receiver: Receiver,
        limits: protocol.SessionLimits,
        resources: protocol.ResourceLimits,
        context_fd: int,
    ) -> bytes:
        """Fork a shim, with a sandbox, whose messages go to ``receiver``; its session.

        Raises:
            SandboxLost: the zygote is gone.
        """
        return self._order(receiver, lambda session: protocol.Spawn(session, limits, resources), context_fd)

    def attach(
        self, receiver: Receiver, limits: protocol.SessionLimits, stream_fd: int, groups: dict[str, str]
    ) -> bytes:
        """Fork a shim for a guest in a container, see ``protocol.Attach``; its session.

        Raises:
            SandboxLost: the zygote is gone.
        """
        return self._order(receiver, lambda session: protocol.Attach(session, limits, groups), stream_fd)

    def _order(
        self, receiver: Receiver, order: Callable[[bytes], protocol.Spawn | protocol.Attach], fd: int
    ) -> bytes:
        session = b"s" + os.urandom(12)
        self._sessions[session] = _Session(receiver)
        try:
            socket.send_fds(self._control, [protocol.encode(order(session))], [fd])
        except OSError as error:
            del self._sessions[session]
            raise SandboxLost("the process that forks sandboxes is gone") from error
        return session

    def send(self, session: bytes, message: protocol.ToShim) -> None:
        """Send to a session's shim. To one that is gone, nothing is sent: its end is on its way here.

        Raises:
            LocalProtocolError: the message is larger than a frame may be, or holds lone surrogates.
        """
        try:
            payload = protocol.encode(message)
        except UnicodeEncodeError as error:
            raise LocalProtocolError("lone surrogates in a message to the guest") from error
        if len(payload) > protocol.MAX_FRAME_BYTES:
            raise LocalProtocolError(
                f"a message of {len(payload)} bytes; at most {protocol.MAX_FRAME_BYTES} can be sent"
            )
        self._router.send(session, payload)

    def abandon(self, session: bytes) -> None:
        """Have a shim killed that does not do as it is told; its end will be told as any other."""
        with contextlib.suppress(OSError):
            self._control.send(protocol.encode(protocol.Abandon(session)))

    def forget(self, session: bytes) -> None:
        """Deliver nothing more of this session."""
        self._sessions.pop(session, None)

    async def close(self) -> None:
        """End the process, and with it every sandbox that is left; wait for it."""
        self._alive = False
        self._close_control()
        if not await self._ends_within(_STOP_SECONDS):
            self._process.kill()
            await self._ends_within(_STOP_SECONDS)
        self._router.close()
        self.contexts.close()

    async def _ends_within(self, seconds: float) -> bool:
        """Wait for the process without a thread: those may all be busy with a user's models."""
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

    def _end_process(self) -> None:
        self._process.kill()
        self._process.wait()

    def _hear(self, session: bytes, payload: bytes) -> None:
        known = self._sessions.get(session)
        if known is not None:
            known.receiver(protocol.decode_from_shim(payload))

    def _lose(self, session: bytes) -> None:
        known = self._sessions.get(session)
        if known is None:
            return
        known.has_hung_up = True
        if known.end is not None:
            self._tell_end(known.end)

    def _read_control(self) -> None:
        try:
            packet = self._control.recv(_PACKET_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            packet = b""
        if not packet:
            self._zygote_died()
            return
        match protocol.decode_from_zygote(packet):
            case protocol.ZygoteReady():
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(None)
            case protocol.SetupFailed(step, code):
                self._fail(failure(step, code, self._packages))
            case protocol.NotForked(session, code):
                known = self._sessions.pop(session, None)
                if known is not None:
                    known.receiver(protocol.SetupFailed("fork", code))
                    known.receiver(protocol.ShimExit(session, 0))
            case protocol.ShimExit() as end:
                self._shim_ended(end)

    def _shim_ended(self, end: protocol.ShimExit) -> None:
        """What it said last says more than its wait status, and is heard before its hanging up is."""
        session = self._sessions.get(end.session)
        if session is None:
            return
        session.end = end
        if session.has_hung_up:
            self._tell_end(end)
        else:  # one that ended by itself has said something; one that was killed may never have come
            patience = _LAST_WORDS_SECONDS if end.status == 0 else _LAST_WORDS_OF_KILLED_SECONDS
            self._loop.call_later(patience, self._tell_end, end)

    def _tell_end(self, end: protocol.ShimExit) -> None:
        session = self._sessions.pop(end.session, None)
        if session is not None:
            session.receiver(end)

    def _fail(self, error: Exception) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)

    def _zygote_died(self) -> None:
        """Its death kills the shims, and theirs the guests."""
        self._alive = False
        self._close_control()
        self._fail(SandboxLost("the process that forks sandboxes ended"))
        sessions, self._sessions = self._sessions, {}
        for name, session in sessions.items():
            session.receiver(protocol.ShimExit(name, 9))


@dataclass(slots=True)
class _Session:
    """A shim that was asked for.

    Attributes:
        has_hung_up: whether all that it said has been heard.
        end: how it ended.
    """

    receiver: Receiver
    has_hung_up: bool = False
    end: protocol.ShimExit | None = None
