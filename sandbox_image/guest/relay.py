"""The init of a container, whose stdio is the only stream to the shim.

It carries the repl's frames, and reads what cells print.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections import deque
from typing import NoReturn

from .. import protocol
from .init import FILE_NUMBERS, INTERRUPT_NUMBER, Init
from .pipes import Pipes
from .streams import Stream

# So much may wait for a repl that does not read. Then the shim is not read either, and its own bound applies.
# It cannot interrupt the cell then, but it ends it by the clock.
_UNREAD_BYTES = 32 << 20
# Pipes are read so often, or again at once if much came: each piece is a message for shim and engine.
_PAUSE_SECONDS = 0.005
_MUCH = 32 << 10
# MessagePack's short arrays, whose second byte is the message's number.
_SHORT_ARRAYS = range(0x90, 0xA0)
_OF_INIT = {
    protocol.tag(kind) for kind in (protocol.Output, protocol.FileData, protocol.FileList, protocol.ReplExit)
}
_FORGED = bytes(protocol.HEADER_BYTES)
_EXECUTE_NUMBER = protocol.tag(protocol.Execute)
_DONE_NUMBER = protocol.tag(protocol.Done)


def main(shim: Stream, *, linger: float) -> NoReturn:
    """Run the sandbox until its repl or the shim has ended; see ``Init`` for ``linger``."""
    repl, repl_end = socket.socketpair()
    Relay(shim, repl, linger=linger).serve(repl_end)


class Relay(Init):
    """An init between the repl and the shim, which blocks on neither.

    While the shim does not read, the guest is not read.
    """

    def __init__(self, shim: Stream, repl: socket.socket, *, linger: float) -> None:
        super().__init__(shim, None, linger=linger)
        self._repl = repl
        self._repl_frames = protocol.FrameBuffer(protocol.MAX_FRAME_BYTES)
        self._to_repl: deque[tuple[memoryview, list[int]]] = deque()
        self._unread_bytes = 0
        self._to_shim: deque[memoryview] = deque()
        self._pipes = Pipes()
        self._cell = 0
        self._read_pipes_at: float | None = None
        repl.setblocking(False)
        os.set_blocking(shim.writer, False)
        self._poller.register(repl, select.POLLIN)
        self._poller.register(shim.writer, 0)

    def _close_in_repl(self) -> None:
        super()._close_in_repl()
        self._repl.close()

    def _handle_event(self, fd: int, events: int) -> None:
        if fd == self._repl.fileno():
            if events & select.POLLOUT:
                self._flush_to_repl()
            if events & ~select.POLLOUT:
                self._read_repl()
        elif fd in self._pipes.streams:
            self._read_pipe(fd)
        elif fd == self._shim.writer:
            if not events & select.POLLOUT:
                os._exit(1)
            self._flush_to_shim()
        else:
            super()._handle_event(fd, events)

    def _before_poll(self) -> int | None:
        if self._read_pipes_at is None:
            return None
        left = self._read_pipes_at - time.monotonic()
        if left > 0:
            return int(left * 1000) + 1
        self._read_pipes_at = None
        self._update_poller()
        return None

    def _update_poller(self) -> None:
        """Poll each descriptor for what can be done with it now."""
        from_guest = 0 if self._to_shim else select.POLLIN
        self._poller.modify(self._repl, from_guest | (select.POLLOUT if self._to_repl else 0))
        for fd in self._pipes.streams:
            self._poller.modify(fd, from_guest if self._read_pipes_at is None else 0)
        self._poller.modify(self._shim.fileno(), select.POLLIN if self._unread_bytes < _UNREAD_BYTES else 0)
        self._poller.modify(self._shim.writer, select.POLLOUT if self._to_shim else 0)

    def _send_bytes(self, data: bytes) -> None:
        self._to_shim.append(memoryview(data))
        self._flush_to_shim()

    def _flush_to_shim(self) -> None:
        # A BrokenPipeError ends this process: the shim is gone.
        with contextlib.suppress(BlockingIOError):
            while self._to_shim:
                sent = os.write(self._shim.writer, self._to_shim[0])
                self._to_shim[0] = self._to_shim[0][sent:]
                if not self._to_shim[0]:
                    self._to_shim.popleft()
        self._update_poller()

    def _handle_message(self, number: int, payload: bytes) -> None:
        if number in FILE_NUMBERS or number == INTERRUPT_NUMBER:
            super()._handle_message(number, payload)
            return
        writers: list[int] = []
        if number == _EXECUTE_NUMBER:
            message = protocol.decode_to_guest(payload)
            assert isinstance(message, protocol.Execute)
            self._cell = message.cell
            writers = self._pipes.make()
            self._read_pipes_at = time.monotonic() + _PAUSE_SECONDS
            for fd in self._pipes.streams:
                self._poller.register(fd, 0)
        frame = memoryview(protocol.frame(payload))
        self._to_repl.append((frame, writers))
        self._unread_bytes += len(frame)
        self._flush_to_repl()

    def _flush_to_repl(self) -> None:
        try:
            while self._to_repl:
                data, writers = self._to_repl[0]
                sent = socket.send_fds(self._repl, [data], writers) if writers else self._repl.send(data)
                for fd in writers:
                    os.close(fd)
                self._unread_bytes -= sent
                if sent == len(data):
                    self._to_repl.popleft()
                else:
                    self._to_repl[0] = (data[sent:], [])
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self._to_repl.clear()
            self._unread_bytes = 0
        self._update_poller()

    def _read_repl(self) -> None:
        try:
            data = self._repl.recv(protocol.READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if data:
            self._forward(data)
        else:
            self._end_silent_repl()

    def _forward(self, data: bytes) -> None:
        try:
            for payload in self._repl_frames.feed(data):
                if payload[0] not in _SHORT_ARRAYS or protocol.kind(payload) in _OF_INIT:
                    # The shim cannot see whose a frame is. An empty one ends the session.
                    self._send_bytes(_FORGED)
                # The cell's output goes first: after `Done` the shim takes none.
                if protocol.kind(payload) == _DONE_NUMBER:
                    self._retire_pipes()
                self._send_bytes(protocol.frame(payload))
        except protocol.Violation:
            # The shim's limit is no higher than this one. It gets the same bytes and ends the session.
            self._send_bytes(data)

    def _read_pipe(self, fd: int) -> None:
        stream = self._pipes.streams[fd]
        data = self._pipes.read(fd)
        if data:
            if len(data) < _MUCH:
                self._read_pipes_at = time.monotonic() + _PAUSE_SECONDS
            self._send(protocol.Output(self._cell, stream, data))
        elif data is not None:
            self._poller.unregister(fd)

    def _retire_pipes(self) -> None:
        """Send what the cell's pipes hold; discard what is written to them later."""
        pipes = list(self._pipes.streams)
        for stream, data in self._pipes.drain():
            self._send(protocol.Output(self._cell, stream, data))
        for fd in pipes:
            self._poller.unregister(fd)
        for fd in self._pipes.retire():
            self._add_old_pipe(fd)

    def _forward_remaining_output(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._repl.recv(protocol.READ_BYTES):
                self._forward(data)
        self._retire_pipes()

    def _wait_for_shim_to_close(self, deadline: float) -> None:
        """Send what is left, however long it takes; then wait until the deadline."""
        ends = select.poll()
        ends.register(self._shim.fileno(), select.POLLIN)
        while (left := deadline - time.monotonic()) > 0 or self._to_shim:
            ends.register(self._shim.writer, select.POLLOUT if self._to_shim else 0)
            for fd, _ in ends.poll(None if self._to_shim else left * 1000):
                if fd == self._shim.writer:
                    if not self._to_shim:
                        return
                    self._flush_to_shim()
                # The shim may be blocked on what it sends. So that is read too, and dropped.
                elif not self._shim.recv(protocol.READ_BYTES)[0]:
                    return
