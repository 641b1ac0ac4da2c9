"""The repl's end of its stream, for all its threads."""

from __future__ import annotations

import array
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from .. import protocol

T = TypeVar("T")

# A thread that cannot send waits so long for the reader. Then it checks whether a thread still reads.
_READER_MS = 50


# There is no extra reader thread: the first thread that waits reads for all. So a cell with one thread reads
# its replies itself, without a context switch.
class Channel:
    """Send and receive frames on a socket that threads share."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames = protocol.FrameBuffer(protocol.MAX_FRAME_BYTES)
        self._poller = select.poll()
        self._poller.register(sock, select.POLLIN)
        self._send_lock = threading.Lock()
        self._changed = threading.Condition(threading.Lock())
        self._is_reader_active = False
        self._messages: deque[protocol.ToGuest] = deque()
        self._replies: dict[int, list[str | protocol.CallError]] = {}
        self._tool_replies: dict[int, bytes | protocol.ToolFailure] = {}
        self._descriptors: deque[int] = deque()
        self._main = threading.get_ident()
        self._owner = os.getpid()
        self.interrupts = Interrupts()

    def send(self, message: protocol.FromGuest) -> None:
        """Send one message.

        Raises:
            RuntimeError: this process is a child of the repl.
        """
        if os.getpid() != self._owner:
            raise RuntimeError(
                "worker, worker_batch, FINAL and host tools work only in the process of the cell, "
                "not in its children"
            )
        data = memoryview(protocol.frame(protocol.encode(message)))
        with self.interrupts.deferred(), self._send_lock:
            while data:
                try:
                    data = data[self._sock.send(data, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    # The shim reads a guest only while the guest reads its replies.
                    self._wait_for_room()

    def has_input(self) -> bool:
        """Whether there are bytes to read now."""
        return bool(self._poller.poll(0))

    def receive(self) -> protocol.ToGuest:
        """Return the next message that is not a reply."""
        return self._wait(lambda: self._messages.popleft() if self._messages else None)  # type: ignore[return-value]  # mypy joins the union

    def reply(self, call: int) -> list[str | protocol.CallError]:
        """Wait for a worker call's reply."""
        return self._wait(lambda: self._replies.pop(call, None))

    def tool_reply(self, call: int) -> bytes | protocol.ToolFailure:
        """Wait for a tool call's reply."""
        return self._wait(lambda: self._tool_replies.pop(call, None))  # type: ignore[return-value]  # mypy joins the union

    def descriptors(self, count: int) -> list[int]:
        """Return descriptors that came with the last message."""
        return [self._descriptors.popleft() for _ in range(count)]

    def _wait(self, take: Callable[[], T | None]) -> T:
        with self.interrupts.deferred(), self._changed:
            while True:
                value = take()
                if value is not None:
                    return value
                if self._is_reader_active:
                    with self.interrupts.allowed():
                        self._changed.wait()
                    continue
                self._is_reader_active = True
                self._changed.release()
                try:
                    with self.interrupts.allowed():
                        self._poller.poll()
                    payloads = self._read()
                finally:
                    self._changed.acquire()
                    self._is_reader_active = False
                    self._changed.notify_all()
                self._dispatch(payloads)

    def _wait_for_room(self) -> None:
        # Read meanwhile, if no other thread does.
        poller = select.poll()
        with self._changed:
            is_reader = not self._is_reader_active
            self._is_reader_active = True
        if not is_reader:
            poller.register(self._sock, select.POLLOUT)
            poller.poll(_READER_MS)
            return
        payloads: list[bytes] = []
        try:
            poller.register(self._sock, select.POLLIN | select.POLLOUT)
            if any(events & ~select.POLLOUT for _, events in poller.poll()):
                payloads = self._read()
        finally:
            with self._changed:
                self._is_reader_active = False
                self._dispatch(payloads)
                self._changed.notify_all()

    def _dispatch(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            message = protocol.decode_to_guest(payload)
            if isinstance(message, protocol.Reply):
                self._replies[message.call] = message.results
            elif isinstance(message, protocol.ToolReply):
                self._tool_replies[message.call] = message.result
            else:
                self._messages.append(message)

    def _read(self) -> list[bytes]:
        data, ancillary, _, _ = self._sock.recvmsg(protocol.READ_BYTES, socket.CMSG_SPACE(8))
        for level, kind, packed in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._descriptors.extend(array.array("i", packed))
        if not data:
            os._exit(0)
        return self._frames.feed(data)


class Interrupts:
    """Defers KeyboardInterrupt while the channel works, in the main thread."""

    def __init__(self) -> None:
        # Python runs signal handlers in this thread.
        self._main = threading.get_ident()
        self._depth = 0
        self._open = False
        self._pending = False

    def raise_or_defer(self) -> None:
        """Raise an interrupt, now or where the channel allows it."""
        if self._depth and not self._open:
            self._pending = True
        else:
            raise KeyboardInterrupt

    def deferred(self) -> _Deferred:
        """Return a context that defers interrupts."""
        return _Deferred(self)

    def allowed(self) -> _Allowed:
        """Return a context, inside ``deferred``, that raises them."""
        return _Allowed(self)

    def clear(self) -> None:
        """Drop a deferred interrupt."""
        self._pending = False

    def enter(self, change: int) -> None:
        """Enter (1) or leave (-1) a ``deferred`` context."""
        if threading.get_ident() == self._main:
            self._depth += change
            if not self._depth and self._pending:
                self._pending = False
                raise KeyboardInterrupt

    def open(self, *, state: bool) -> None:
        """Enter or leave an ``allowed`` context."""
        if threading.get_ident() == self._main:
            self._open = state
            if state and self._pending:
                self._pending = False
                self._open = False
                raise KeyboardInterrupt


class _Deferred:
    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts

    def __enter__(self) -> None:
        self._interrupts.enter(1)

    def __exit__(self, *_: object) -> None:
        self._interrupts.enter(-1)


class _Allowed:
    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts

    def __enter__(self) -> None:
        self._interrupts.open(state=True)

    def __exit__(self, *_: object) -> None:
        self._interrupts.open(state=False)
