"""A guest on its stdin and stdout, as its shim sees it."""

from __future__ import annotations

import os
import select
import selectors
import subprocess
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from supdist.sandbox_image import protocol
from supdist.sandbox_image.protocol import (
    Call,
    CallError,
    Done,
    Execute,
    FromGuest,
    Load,
    Output,
    Ready,
    ReplExit,
    Reply,
    Start,
)

_SECONDS = 60.0


class Guest:
    """The host's end of a guest's stream. Everything on stdout must be frames."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self._in, self._out = process.stdin, process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)
        self._frames = protocol.FrameBuffer(protocol.MAX_FRAME_BYTES)
        self._received: deque[FromGuest] = deque()
        self._cell = 0

    def start(self, load: Load) -> Ready:
        """Send a question and a context; return the guest's first message."""
        self._send(Start("the question", True, True, 1 << 20, 16, 16 << 20, 8 << 20, 32 << 20, [], []))
        self._send(load)
        ready = self.receive()
        assert isinstance(ready, Ready)
        return ready

    def run(self, code: str) -> tuple[str, Done | ReplExit]:
        """Run a cell; return its stdout and how it ended."""
        self.begin(code)
        return self.end()

    def begin(self, code: str) -> None:
        """Start a cell."""
        self._cell += 1
        self._send(Execute(self._cell, code, _SECONDS))

    def flood(self, data: bytes, *, whole: bool = False) -> int:
        """Send as much as the guest reads within a second, or all; return the number of bytes."""
        fd, sent = self._in.fileno(), 0
        os.set_blocking(fd, False)
        with selectors.DefaultSelector() as writable:
            writable.register(fd, selectors.EVENT_WRITE)
            while sent < len(data) and writable.select(_SECONDS if whole else 1):
                sent += os.write(fd, data[sent : sent + (1 << 16)])
        os.set_blocking(fd, True)
        return sent

    def serve(
        self, code: str, answer: Callable[[Call], list[str | CallError]], *, after: bytes, quiet_bytes: int
    ) -> tuple[str, Done | ReplExit]:
        """Run a cell and answer its calls after it printed ``after``; read while few bytes wait."""
        self.begin(code)
        waiting, text, held = bytearray(), b"", bytearray()
        os.set_blocking(self._in.fileno(), False)
        while True:
            poller = select.poll()
            poller.register(self._in, select.POLLOUT if waiting else 0)
            poller.register(self._out, select.POLLIN if len(waiting) < quiet_bytes else 0)
            ready = dict(poller.poll(_SECONDS * 1000))
            assert ready, "neither side has anything to do"
            if waiting and self._in.fileno() in ready:
                del waiting[: os.write(self._in.fileno(), waiting[: 1 << 16])]
            if self._out.fileno() not in ready:
                continue
            data = os.read(self._out.fileno(), 1 << 16)
            assert data, "the guest has ended"
            for payload in self._frames.feed(data):
                message = protocol.decode_from_guest(payload)
                if isinstance(message, Call):
                    held += protocol.frame(protocol.encode(Reply(message.call, answer(message))))
                elif isinstance(message, Output):
                    text += message.data
                elif isinstance(message, (Done, ReplExit)):
                    os.set_blocking(self._in.fileno(), True)
                    return text.decode(), message
            if after in text:
                waiting, held = waiting + held, bytearray()

    def end(self) -> tuple[str, Done | ReplExit]:
        """Return what the cell printed, and how it ended."""
        text = b""
        while not isinstance(message := self.receive(), (Done, ReplExit)):
            if isinstance(message, Output) and message.stream == 1:
                text += message.data
        return text.decode(), message

    def receive(self) -> FromGuest | None:
        """Return the next message; None if the guest closed its stream."""
        while not self._received:
            assert self._selector.select(_SECONDS), "the guest sends nothing"
            data = os.read(self._out.fileno(), 1 << 16)
            if not data:
                return None
            self._received.extend(map(protocol.decode_from_guest, self._frames.feed(data)))
        return self._received.popleft()

    def close_input(self) -> None:
        """Close the guest's input."""
        self._in.close()

    def _send(self, message: protocol.ToGuest) -> None:
        self._in.write(protocol.frame(protocol.encode(message)))
        self._in.flush()


@contextmanager
def guest(command: Sequence[str]) -> Generator[Guest]:
    """Start a guest with this command; it has ended afterwards."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        guest_end = Guest(process)
        try:
            yield guest_end
        finally:
            guest_end.close_input()
            try:
                process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
