"""PID 1 inside the walls: starts the repl, carries its frames, pumps its output, reports how it died.

It runs with the guest's rights and is no wall: what it relays, the shim judges. It ends with the repl,
and the kernel then kills everything else in the namespace; a fresh start is a fresh sandbox.

Every cell gets pipes of its own for fd 1 and 2. What a process that outlives its cell still writes goes
to the old pipes, which are read to their end and thrown away, and never appears as a later cell's output.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import resource
import select
import signal
import socket
import time
from collections import deque
from typing import Literal, NoReturn

from .. import protocol
from . import files, repl
from .linux import die_first, set_dumpable, set_process_name

CHANNEL_FD = 3
CONTEXT_FD = 4
CALLS_FD = 5

_PIPE_BYTES = 1 << 18
_OLD_PIPES = 16
_DYING_SECONDS = 0.2
_EXECUTE, _INTERRUPT, _DONE = 3, 5, 24  # tags, read without decoding
_FILES = {6, 7, 12}


def main() -> NoReturn:
    """Run the sandbox until its repl has ended. Never returns."""
    Init(Stream(CHANNEL_FD, CHANNEL_FD), CONTEXT_FD, CALLS_FD).serve()
    os._exit(0)


class Stream:
    """A byte stream over blocking descriptors: one of a socket, or one for each direction."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader = reader
        self._writer = writer

    def fileno(self) -> int:
        """The descriptor that becomes readable."""
        return self._reader

    def recv(self, size: int) -> bytes:
        """At most ``size`` bytes; none at the end."""
        return os.read(self._reader, size)

    def sendall(self, data: bytes) -> None:
        """Write everything."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._writer, view) :]

    def close(self) -> None:
        """Close both directions."""
        for fd in {self._reader, self._writer}:
            os.close(fd)


class Init:
    """The relay between the shim's stream, the repl's stream and the pipes of its output.

    Where there is a stream for calls, the repl has it, and calls of workers and tools pass init by. ``linger`` is for
    how many seconds it stays after its last words, unless the shim closes the stream first.
    """

    def __init__(
        self, shim: Stream, context_fd: int | None, calls_fd: int | None = None, *, linger: float = 0.0
    ) -> None:
        self._shim = shim
        self._context_fd = context_fd
        self._calls_fd = calls_fd
        self._linger = linger
        self._from_shim = protocol.FrameBuffer(protocol.MAX_FRAME_BYTES)
        self._from_repl = protocol.FrameBuffer(protocol.MAX_FRAME_BYTES)
        self._to_repl: deque[tuple[memoryview, list[int]]] = deque()
        self._pipes: dict[int, Literal[1, 2]] = {}
        self._old: deque[int] = deque()
        self._cell = 0
        self._poller = select.poll()
        # Which cell an interrupt is meant for; the repl's signal handler reads it, so that a signal that
        # arrives late cannot hit the next cell.
        self._target = mmap.mmap(-1, 8)

    def serve(self) -> None:
        """Start the repl and relay until it or the shim is gone."""
        mine, repls = socket.socketpair()
        # A guest may have so many descriptors in flight between sockets that its limit allows no more to anybody
        # of its uid, which on an ordinary user's machine is every sandbox. Init passes some on in each cell.
        most_files, ceiling = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, ceiling))
        self._repl_pid = os.fork()
        if self._repl_pid == 0:
            mine.close()
            self._shim.close()
            set_dumpable()
            set_process_name("python")
            die_first()
            for fd in (1, 2):  # init's may lead outside
                os.dup2(0, fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
            calls = None if self._calls_fd is None else socket.socket(fileno=self._calls_fd)
            repl.main(repls, calls, self._context_fd, self._target)
        repls.close()
        for fd in (self._context_fd, self._calls_fd):
            if fd is not None:
                os.close(fd)
        set_process_name("supdist-init")
        mine.setblocking(False)
        self._repl = mine
        self._wake, signalled = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _wake)
        for fd in (self._shim.fileno(), mine.fileno(), self._wake):
            self._poller.register(fd, select.POLLIN)
        while True:
            for fd, events in self._poller.poll():
                self._attend(fd, events)

    def _attend(self, fd: int, events: int) -> None:
        if fd == self._wake:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
            self._reap()
        elif fd == self._shim.fileno():
            self._read_shim()
        elif fd == self._repl.fileno():
            if events & select.POLLOUT:
                self._flush_to_repl()
            if events & ~select.POLLOUT:
                self._read_repl()
        elif fd in self._pipes or fd in self._old:  # not closed since the poll
            self._pump(fd)

    def _read_shim(self) -> None:
        data = self._shim.recv(protocol.READ_BYTES)
        if not data:
            os._exit(1)
        for payload in self._from_shim.feed(data):
            number = protocol.kind(payload)
            if number in _FILES:
                self._shim.sendall(
                    protocol.frame(protocol.encode(files.serve(protocol.decode_to_guest(payload))))
                )
                continue
            if number == _INTERRUPT:
                message = protocol.decode_to_guest(payload)
                assert isinstance(message, protocol.Interrupt)
                self._target[:8] = message.cell.to_bytes(8, "little")
                os.kill(self._repl_pid, signal.SIGINT)
                continue
            pipes: list[int] = []
            if number == _EXECUTE:
                message = protocol.decode_to_guest(payload)
                assert isinstance(message, protocol.Execute)
                pipes = self._new_pipes(message.cell)
            self._to_repl.append((memoryview(protocol.frame(payload)), pipes))
        self._flush_to_repl()

    def _flush_to_repl(self) -> None:
        try:
            while self._to_repl:
                data, pipes = self._to_repl[0]
                sent = socket.send_fds(self._repl, [data], pipes) if pipes else self._repl.send(data)
                for fd in pipes:
                    os.close(fd)
                if sent == len(data):
                    self._to_repl.popleft()
                else:
                    self._to_repl[0] = (data[sent:], [])
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self._to_repl.clear()
        self._poller.modify(self._repl, select.POLLIN | (select.POLLOUT if self._to_repl else 0))

    def _read_repl(self) -> None:
        try:
            data = self._repl.recv(protocol.READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._poller.unregister(self._repl)
            self._bury_silent_repl()
            return
        self._relay(data)

    def _relay(self, data: bytes) -> None:
        try:
            for payload in self._from_repl.feed(data):
                if protocol.kind(payload) == _DONE:
                    self._retire_pipes()
                self._shim.sendall(protocol.frame(payload))
        except protocol.Violation:
            # The shim's limit is no higher than ours: shown the same bytes it comes to the same verdict.
            self._shim.sendall(data)

    # Output

    def _new_pipes(self, cell: int) -> list[int]:
        self._retire_pipes()
        self._cell = cell
        writers: list[int] = []
        for stream in (1, 2):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(reader, False)
            with contextlib.suppress(OSError):  # a user has so many pages for pipes; a small one works too
                fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            self._pipes[reader] = stream
            self._poller.register(reader, select.POLLIN)
            writers.append(writer)
        return writers

    def _retire_pipes(self) -> None:
        """Send what the cell's pipes hold, and from now on throw away what comes."""
        for fd in list(self._pipes):
            # So often and no more: a flood must not hold the cell's end back.
            for _ in range(_PIPE_BYTES // protocol.READ_BYTES + 1):
                if not self._pump(fd):
                    break
            if self._pipes.pop(fd, None) is not None:
                self._old.append(fd)
        while len(self._old) > _OLD_PIPES:
            self._close(self._old.popleft())

    def _pump(self, fd: int) -> bool:
        """Move one piece of output; False where there is none now."""
        try:
            data = os.read(fd, protocol.READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            if self._pipes.pop(fd, None) is None:
                self._old.remove(fd)
            self._close(fd)
            return False
        stream = self._pipes.get(fd)
        if stream is not None:
            message = protocol.Output(self._cell, stream, data)
            self._shim.sendall(protocol.frame(protocol.encode(message)))
        return True

    def _close(self, fd: int) -> None:
        self._poller.unregister(fd)
        os.close(fd)

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
        """Pass on what the repl said before it died, and its death; the namespace dies with this process."""
        deadline = time.monotonic() + self._linger
        with contextlib.suppress(OSError):
            while data := self._repl.recv(protocol.READ_BYTES):
                self._relay(data)
        with contextlib.suppress(OSError):
            self._retire_pipes()
            self._shim.sendall(protocol.frame(protocol.encode(protocol.ReplExit(status, hung_up))))
            self._wait_for_the_shim(deadline)
        os._exit(0)

    def _wait_for_the_shim(self, deadline: float) -> None:
        """Until it has looked at what dies with this process, and hung up. What it sends until then is read by nobody."""
        hung_up = select.poll()
        hung_up.register(self._shim.fileno(), 0)
        hung_up.poll(max(0.0, deadline - time.monotonic()) * 1000)


def _wake(number: int, frame: object) -> None:
    """A handler must exist for the signal to reach the wake-up descriptor."""
