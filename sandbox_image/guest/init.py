"""PID 1 of a sandbox: starts the repl, interrupts it, moves files, reports its end.

It has the guest's rights and protects nothing: the shim checks what it sends.
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
from typing import NoReturn

from .. import linux, protocol
from . import files, fork_hooks, repl, shared_memory
from .limits import prefer_for_oom_kill
from .pipes import OldPipes
from .streams import SocketStream, Stream

CHANNEL_FD = 3
CONTEXT_FD = 4
REPL_FD = 5
_CELL_BYTES = 8

_REPL_EXIT_SECONDS = 0.2
# Messages are told apart by their numbers, without decoding them.
INTERRUPT_NUMBER = protocol.tag(protocol.Interrupt)
_DISCARD_NUMBER = protocol.tag(protocol.Discard)
_HUNG_UP_NUMBER = protocol.tag(protocol.HungUp)
FILE_NUMBERS = {protocol.tag(kind) for kind in (protocol.PutFile, protocol.GetFile, protocol.ListFiles)}


def allocate_shared() -> mmap.mmap:
    """Return memory for ``Init``. Later the filter of system calls may refuse it."""
    return mmap.mmap(-1, _CELL_BYTES)


def main(setup_fd: int, shared: mmap.mmap, *, is_stopped: bool) -> NoReturn:
    """Run the sandbox; close ``setup_fd`` once the repl is forked."""
    init = Init(SocketStream(CHANNEL_FD), CONTEXT_FD, setup_fd=setup_fd, shared=shared, is_stopped=is_stopped)
    init.serve(socket.socket(fileno=REPL_FD))


class Init:
    """The parent of the repl.

    Args:
        linger: seconds to stay after the last message, unless the shim closes the stream.
        is_stopped: whether the shim stops processes now and then. It then kills a repl that others stop.
    """

    def __init__(
        self,
        shim: Stream,
        context_fd: int | None,
        *,
        setup_fd: int | None = None,
        shared: mmap.mmap | None = None,
        linger: float = 0.0,
        is_stopped: bool = False,
    ) -> None:
        self._shim = shim
        self._context_fd = context_fd
        self._setup_fd = setup_fd
        self._linger = linger
        self._is_stopped = is_stopped
        self._frames = protocol.FrameBuffer(protocol.MAX_FRAME_BYTES)
        self._old_pipes = OldPipes()
        self._poller = select.poll()
        # The cell that the last interrupt is for. The repl's signal handler reads it (shared memory), so that
        # a late signal cannot interrupt the next cell.
        self._interrupted_cell = shared or allocate_shared()
        self._repl_pid = 0  # until it is forked
        self._signals = -1  # readable after SIGCHLD, once the repl is forked

    def serve(self, repl_end: socket.socket) -> NoReturn:
        """Fork the repl, and serve until it or the shim has ended."""
        # The guest's descriptors in flight count against the sender's limit (unix(7)). A relay must still
        # send a cell's pipes when the guest has used up its own limit.
        open_files, ceiling = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, ceiling))
        # Before the fork, so that the repl never has the shim's name.
        linux.set_process_name("supdist-init")
        self._repl_pid = os.fork()
        if self._setup_fd is not None:
            os.close(self._setup_fd)
        if self._repl_pid == 0:
            self._run_repl(repl_end, open_files)
        repl_end.close()
        if self._context_fd is not None:
            os.close(self._context_fd)
        self._signals = _watch_children()
        for fd in (self._shim.fileno(), self._signals):
            self._poller.register(fd, select.POLLIN)
        while True:
            for fd, events in self._poller.poll(self._before_poll()):
                self._handle_event(fd, events)

    def _before_poll(self) -> int | None:
        """Return the most milliseconds to wait; None for no limit."""
        return None

    def _run_repl(self, repl_end: socket.socket, open_files: int) -> NoReturn:
        fork_hooks.register_deferred()
        self._close_in_repl()
        # The repl measures its isolation in /proc/self, which the setup has closed.
        linux.set_dumpable()
        linux.set_process_name("python")
        prefer_for_oom_kill()
        shared_memory.replace_mmap()
        for fd in (1, 2):  # init's may lead out of the sandbox
            os.dup2(0, fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
        repl.main(repl_end, self._context_fd, self._interrupted_cell)

    def _close_in_repl(self) -> None:
        self._shim.close()

    def _handle_event(self, fd: int, events: int) -> None:
        if fd == self._signals:
            self._clear_signals()
            self._reap()
        elif fd == self._shim.fileno():
            self._read_shim()
        elif fd in self._old_pipes and self._old_pipes.discard(fd):  # else it was closed since the poll
            self._poller.unregister(fd)

    def _read_shim(self) -> None:
        data, descriptors = self._shim.recv(protocol.READ_BYTES)
        if not data:
            os._exit(1)
        for fd in descriptors:
            self._add_old_pipe(fd)
        for payload in self._frames.feed(data):
            self._handle_message(protocol.kind(payload), payload)

    def _handle_message(self, number: int, payload: bytes) -> None:
        if number in FILE_NUMBERS:
            self._send(files.serve(protocol.decode_to_guest(payload)))
        elif number == INTERRUPT_NUMBER:
            message = protocol.decode_to_guest(payload)
            assert isinstance(message, protocol.Interrupt)
            self._interrupted_cell[:_CELL_BYTES] = message.cell.to_bytes(_CELL_BYTES, "little")
            os.kill(self._repl_pid, signal.SIGINT)
        elif number == _HUNG_UP_NUMBER:
            self._end_silent_repl()
        else:
            assert number == _DISCARD_NUMBER

    def _send(self, message: protocol.FromGuest) -> None:
        self._send_bytes(protocol.frame(protocol.encode(message)))

    def _send_bytes(self, data: bytes) -> None:
        self._shim.sendall(data)

    def _add_old_pipe(self, fd: int) -> None:
        closed = self._old_pipes.add(fd)
        if closed is not None:
            self._poller.unregister(closed)
        self._poller.register(fd, select.POLLIN)

    # The end

    def _clear_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._signals, 4096)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if os.WIFSTOPPED(status):
                if pid == self._repl_pid and not self._is_stopped:
                    # A child of its own stopped it; it would never report an end.
                    os.kill(pid, signal.SIGKILL)
            elif pid == self._repl_pid:
                self._end(status, hung_up=False)

    def _end_silent_repl(self) -> NoReturn:
        # It has closed its stream: mostly it is dying, or has become another program (execve(2)).
        deadline = time.monotonic() + _REPL_EXIT_SECONDS
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self._repl_pid, os.WNOHANG)
            if pid:
                self._end(status, hung_up=False)
            select.select([self._signals], [], [], max(0.0, deadline - time.monotonic()))
            self._clear_signals()
        os.kill(self._repl_pid, signal.SIGKILL)
        self._end(os.waitpid(self._repl_pid, 0)[1], hung_up=True)

    def _end(self, status: int, *, hung_up: bool) -> NoReturn:
        deadline = time.monotonic() + self._linger
        with contextlib.suppress(OSError):
            self._forward_remaining_output()
            self._send(protocol.ReplExit(status, hung_up))
            self._wait_for_shim_to_close(deadline)
        # The kernel kills every other process of the namespace now (pid_namespaces(7)).
        os._exit(0)

    def _forward_remaining_output(self) -> None:
        """Send what the repl left; here it has streams of its own."""

    def _wait_for_shim_to_close(self, deadline: float) -> None:
        # Not for input: what the shim still sends is not read any more.
        closed = select.poll()
        closed.register(self._shim.fileno(), 0)
        closed.poll(max(0.0, deadline - time.monotonic()) * 1000)


def _watch_children() -> int:
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # Python writes to the wake-up descriptor only for signals that have a handler.
    signal.signal(signal.SIGCHLD, _do_nothing)
    return reader


def _do_nothing(*_: object) -> None:
    pass
