"""PID 1 inside the walls: starts the repl, passes interrupts on, sees to files, reports how the repl died.

It runs with the guest's rights and is no wall: what it says, the shim judges. It ends with the repl,
and the kernel then kills everything else in the namespace; a fresh start is a fresh sandbox.

The repl has a stream of its own to the shim, which reads what a cell prints, too. Where all must go one way, in a
container, ``Relay`` stands between.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import select
import signal
import socket
import time
from collections import deque
from typing import NoReturn

from .. import linux, protocol
from . import files, fork_hooks, repl
from .limits import prefer_for_oom_kill
from .pipes import OldPipes, Pipes

CHANNEL_FD = 3
CONTEXT_FD = 4
REPL_FD = 5

_DYING_SECONDS = 0.2
_WAITING_BYTES = 32 << 20
# Read without decoding the message.
_EXECUTE, _INTERRUPT, _DISCARD = map(protocol.tag, (protocol.Execute, protocol.Interrupt, protocol.Discard))
_HUNG_UP, _DONE = protocol.tag(protocol.HungUp), protocol.tag(protocol.Done)
_FILES = set(map(protocol.tag, (protocol.PutFile, protocol.GetFile, protocol.ListFiles)))


def main(sync: int) -> NoReturn:
    """Run the sandbox until its repl has ended. ``sync`` is closed once there is a repl. Never returns."""
    Init(SocketStream(CHANNEL_FD), CONTEXT_FD, sync=sync).serve(socket.socket(fileno=REPL_FD))


class Stream:
    """A byte stream over two blocking descriptors, one for each direction.

    Attributes:
        writer: the descriptor of what goes out.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self._reader = reader
        self.writer = writer

    def fileno(self) -> int:
        """The descriptor that becomes readable."""
        return self._reader

    def recv(self, size: int) -> tuple[bytes, list[int]]:
        """At most ``size`` bytes, none at the end; and the descriptors that came beside them."""
        return os.read(self._reader, size), []

    def sendall(self, data: bytes) -> None:
        """Write everything."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.writer, view) :]

    def close(self) -> None:
        """Close both directions."""
        for fd in {self._reader, self.writer}:
            os.close(fd)


class SocketStream(Stream):
    """The same over a Unix socket, which takes descriptors along."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, fd)
        self._socket = socket.socket(fileno=fd)

    def recv(self, size: int) -> tuple[bytes, list[int]]:
        """See ``Stream.recv``."""
        data, descriptors, _, _ = socket.recv_fds(self._socket, size, 2)
        return data, descriptors

    def close(self) -> None:
        """See ``Stream.close``."""
        self._socket.close()


class Init:
    """The parent of the repl.

    ``linger`` is for how many seconds it stays after its last words, unless the shim closes the stream first.
    ``sync`` is a descriptor on which someone waits for the repl to be there.
    """

    def __init__(
        self, shim: Stream, context_fd: int | None, *, sync: int | None = None, linger: float = 0.0
    ) -> None:
        self._shim = shim
        self._sync = sync
        self._context_fd = context_fd
        self._linger = linger
        self._from_shim = protocol.FrameBuffer(protocol.MAX_FRAME_BYTES)
        self._old = OldPipes()
        self._poller = select.poll()
        # Which cell an interrupt is meant for; the repl's signal handler reads it, so that a signal that
        # arrives late cannot hit the next cell.
        self._target = mmap.mmap(-1, 8)

    def serve(self, repls: socket.socket) -> NoReturn:
        """Start the repl, with this end of its stream, and see to it until it or the shim is gone."""
        # A guest may have so many descriptors in flight between sockets that its limit allows no more to anybody
        # of its uid. A relay must still be able to pass a cell's pipes on.
        most_files, ceiling = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, ceiling))
        # Before the fork, so that the name holds from the first moment of the repl.
        linux.set_process_name("supdist-init")
        self._repl_pid = os.fork()
        if self._sync is not None:
            os.close(self._sync)
        if self._repl_pid == 0:
            fork_hooks.register_deferred()
            self._close_in_the_repl()
            linux.set_dumpable()
            linux.set_process_name("python")
            prefer_for_oom_kill()
            for fd in (1, 2):  # init's may lead outside
                os.dup2(0, fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
            repl.main(repls, self._context_fd, self._target)
        repls.close()
        if self._context_fd is not None:
            os.close(self._context_fd)
        self._wake, signalled = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _wake)
        for fd in (self._shim.fileno(), self._wake):
            self._poller.register(fd, select.POLLIN)
        while True:
            for fd, events in self._poller.poll():
                self._attend(fd, events)

    def _close_in_the_repl(self) -> None:
        self._shim.close()

    def _attend(self, fd: int, events: int) -> None:
        if fd == self._wake:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
            self._reap()
        elif fd == self._shim.fileno():
            self._read_shim()
        elif fd in self._old and self._old.discard(fd):  # else it was closed since the poll
            self._poller.unregister(fd)

    def _read_shim(self) -> None:
        data, descriptors = self._shim.recv(protocol.READ_BYTES)
        if not data:
            os._exit(1)
        for fd in descriptors:
            self._keep_old(fd)
        for payload in self._from_shim.feed(data):
            self._obey(protocol.kind(payload), payload)

    def _obey(self, number: int, payload: bytes) -> None:
        if number in _FILES:
            self._say(files.serve(protocol.decode_to_guest(payload)))
        elif number == _INTERRUPT:
            message = protocol.decode_to_guest(payload)
            assert isinstance(message, protocol.Interrupt)
            self._target[:8] = message.cell.to_bytes(8, "little")
            os.kill(self._repl_pid, signal.SIGINT)
        elif number == _HUNG_UP:
            self._bury_silent_repl()
        else:
            assert number == _DISCARD

    def _say(self, message: protocol.FromGuest) -> None:
        self._send(protocol.frame(protocol.encode(message)))

    def _send(self, data: bytes) -> None:
        self._shim.sendall(data)

    def _keep_old(self, fd: int) -> None:
        closed = self._old.add(fd)
        if closed is not None:
            self._poller.unregister(closed)
        self._poller.register(fd, select.POLLIN)

    # Deaths

    def _reap(self) -> None:
        """Reap every child that ended; when the repl did, report it and end with it."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._repl_pid and os.WIFSTOPPED(status):
                os.kill(pid, signal.SIGKILL)  # stopped by a child of its own: it would never say so itself
            elif pid == self._repl_pid:
                self._end(status, hung_up=False)

    def _bury_silent_repl(self) -> NoReturn:
        """It closed its stream: mostly because it is dying or has become another program; there is no way back."""
        deadline = time.monotonic() + _DYING_SECONDS
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self._repl_pid, os.WNOHANG)
            if pid:
                self._end(status, hung_up=False)
            select.select([self._wake], [], [], max(0.0, deadline - time.monotonic()))
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
        os.kill(self._repl_pid, signal.SIGKILL)
        self._end(os.waitpid(self._repl_pid, 0)[1], hung_up=True)

    def _end(self, status: int, *, hung_up: bool) -> NoReturn:
        """Tell of the repl's death; the namespace dies with this process."""
        deadline = time.monotonic() + self._linger
        with contextlib.suppress(OSError):
            self._pass_on_what_is_left()
            self._say(protocol.ReplExit(status, hung_up))
            self._wait_for_the_shim(deadline)
        os._exit(0)

    def _pass_on_what_is_left(self) -> None:
        """What the repl said and wrote before it died has a way of its own."""

    def _wait_for_the_shim(self, deadline: float) -> None:
        """Until it has looked at what dies with this process, and hung up. What it sends until then is read by nobody."""
        hung_up = select.poll()
        hung_up.register(self._shim.fileno(), 0)
        hung_up.poll(max(0.0, deadline - time.monotonic()) * 1000)


class Relay(Init):
    """An init that carries the repl's frames, and pumps what its cells print: to the shim there is one stream.

    It waits in one place, and writes to neither side more than is taken. While something waits for the shim, the guest is
    not read. Where more than a bound waits for the repl, the shim is not read, and has a bound of its own: an interrupt that
    comes then is not heard, and the cell is ended by the shim's clock.
    """

    def __init__(self, shim: Stream, *, linger: float = 0.0) -> None:
        super().__init__(shim, None, linger=linger)
        self._from_repl = protocol.FrameBuffer(protocol.MAX_FRAME_BYTES)
        self._to_repl: deque[tuple[memoryview, list[int]]] = deque()
        self._waiting = 0
        self._to_shim: deque[memoryview] = deque()
        self._pipes = Pipes()
        self._cell = 0

    def relay(self) -> NoReturn:
        """See ``serve``."""
        self._repl, repls = socket.socketpair()
        self._repl.setblocking(False)
        os.set_blocking(self._shim.writer, False)
        self._poller.register(self._repl, select.POLLIN)
        self._poller.register(self._shim.writer, 0)
        self.serve(repls)

    def _close_in_the_repl(self) -> None:
        super()._close_in_the_repl()
        self._repl.close()

    def _attend(self, fd: int, events: int) -> None:
        if fd == self._repl.fileno():
            if events & select.POLLOUT:
                self._flush_to_repl()
            if events & ~select.POLLOUT:
                self._read_repl()
        elif fd in self._pipes.streams:
            self._pump(fd)
        elif fd == self._shim.writer:
            if not events & select.POLLOUT:
                os._exit(1)
            self._flush_to_shim()
        else:
            super()._attend(fd, events)

    def _listen(self) -> None:
        """To whom there is something to hear from now."""
        guest = 0 if self._to_shim else select.POLLIN
        self._poller.modify(self._repl, guest | (select.POLLOUT if self._to_repl else 0))
        for fd in self._pipes.streams:
            self._poller.modify(fd, guest)
        self._poller.modify(self._shim.fileno(), select.POLLIN if self._waiting < _WAITING_BYTES else 0)
        self._poller.modify(self._shim.writer, select.POLLOUT if self._to_shim else 0)

    def _send(self, data: bytes) -> None:
        self._to_shim.append(memoryview(data))
        self._flush_to_shim()

    def _flush_to_shim(self) -> None:
        """Send what is taken now. Raises BrokenPipeError, and so ends this process, where the shim is gone."""
        with contextlib.suppress(BlockingIOError):
            while self._to_shim:
                sent = os.write(self._shim.writer, self._to_shim[0])
                self._to_shim[0] = self._to_shim[0][sent:]
                if not self._to_shim[0]:
                    self._to_shim.popleft()
        self._listen()

    def _obey(self, number: int, payload: bytes) -> None:
        if number in _FILES or number == _INTERRUPT:
            super()._obey(number, payload)
            return
        writers: list[int] = []
        if number == _EXECUTE:
            message = protocol.decode_to_guest(payload)
            assert isinstance(message, protocol.Execute)
            self._cell = message.cell
            writers = self._pipes.make()
            for fd in self._pipes.streams:
                self._poller.register(fd, select.POLLIN)
        frame = memoryview(protocol.frame(payload))
        self._to_repl.append((frame, writers))
        self._waiting += len(frame)
        self._flush_to_repl()

    def _flush_to_repl(self) -> None:
        try:
            while self._to_repl:
                data, writers = self._to_repl[0]
                sent = socket.send_fds(self._repl, [data], writers) if writers else self._repl.send(data)
                for fd in writers:
                    os.close(fd)
                self._waiting -= sent
                if sent == len(data):
                    self._to_repl.popleft()
                else:
                    self._to_repl[0] = (data[sent:], [])
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self._to_repl.clear()
            self._waiting = 0
        self._listen()

    def _read_repl(self) -> None:
        try:
            data = self._repl.recv(protocol.READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if data:
            self._relay(data)
        else:
            self._bury_silent_repl()

    def _relay(self, data: bytes) -> None:
        try:
            for payload in self._from_repl.feed(data):
                if protocol.kind(payload) == _DONE:
                    self._retire_pipes()
                self._send(protocol.frame(payload))
        except protocol.Violation:
            # The shim's limit is no higher than ours: shown the same bytes it comes to the same verdict.
            self._send(data)

    def _pump(self, fd: int) -> None:
        stream = self._pipes.streams[fd]
        data = self._pipes.read(fd)
        if data:
            self._say(protocol.Output(self._cell, stream, data))
        elif data is not None:
            self._poller.unregister(fd)

    def _retire_pipes(self) -> None:
        """Send what the cell's pipes hold, and from now on throw away what comes."""
        pipes = list(self._pipes.streams)
        for stream, data in self._pipes.drain():
            self._say(protocol.Output(self._cell, stream, data))
        for fd in pipes:
            self._poller.unregister(fd)
        for fd in self._pipes.retire():
            self._keep_old(fd)

    def _pass_on_what_is_left(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._repl.recv(protocol.READ_BYTES):
                self._relay(data)
        self._retire_pipes()

    def _wait_for_the_shim(self, deadline: float) -> None:
        """The same; and it gets what is left, for which it may first have to get rid of what it has for the repl."""
        ends = select.poll()
        ends.register(self._shim.fileno(), select.POLLIN)
        while (left := deadline - time.monotonic()) > 0 or self._to_shim:
            ends.register(self._shim.writer, select.POLLOUT if self._to_shim else 0)
            for fd, _ in ends.poll(None if self._to_shim else left * 1000):
                if fd == self._shim.writer:
                    if not self._to_shim:
                        return
                    self._flush_to_shim()
                elif not self._shim.recv(protocol.READ_BYTES)[0]:
                    return


def _wake(number: int, frame: object) -> None:
    """A handler must exist for the signal to reach the wake-up descriptor."""
