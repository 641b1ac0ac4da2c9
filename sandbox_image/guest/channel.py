"""The repl's end of its stream: frames out from any thread, frames in to whoever waits for them.

There is no reader thread. Whoever waits first reads for all (the leader) and hands over to the next
when its own message has come; a single-threaded cell thus reads its reply itself, without a switch.
"""

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

_LEADER_MS = 50
"""So long a thread that has no room to send trusts in another that reads, which may be done before."""


class Channel:
    """Frames over a socket that other threads, and an interrupt's handler, use too."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames = protocol.FrameBuffer(protocol.MAX_FRAME_BYTES)
        self._poller = select.poll()
        self._poller.register(sock, select.POLLIN)
        self._send_lock = threading.Lock()
        self._changed = threading.Condition(threading.Lock())
        self._leading = False
        self._orders: deque[protocol.ToGuest] = deque()
        self._replies: dict[int, list[str | protocol.CallError]] = {}
        self._tool_replies: dict[int, bytes | protocol.ToolFailure] = {}
        self._descriptors: deque[int] = deque()
        self._main = threading.get_ident()
        self._owner = os.getpid()
        self.interrupts = Interrupts()

    def send(self, message: protocol.FromGuest) -> None:
        """Write one frame, whole. Where there is no room for it, read meanwhile: the shim listens to nobody who does not.

        Raises:
            RuntimeError: this is a child process of the cell; only the cell's own process may speak.
        """
        if os.getpid() != self._owner:
            raise RuntimeError(
                "worker, worker_batch, FINAL and tools of the host work only in the process of the cell, not in its children"
            )
        data = memoryview(protocol.frame(protocol.encode(message)))
        with self.interrupts.held(), self._send_lock:
            while data:
                try:
                    data = data[self._sock.send(data, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    self._wait_for_room()

    def has_mail(self) -> bool:
        """Whether something waits to be read now."""
        return bool(self._poller.poll(0))

    def receive(self) -> protocol.ToGuest:
        """The next message that is no reply."""
        return self._wait(lambda: self._orders.popleft() if self._orders else None)  # type: ignore[return-value]  # mypy joins the union

    def reply(self, call: int) -> list[str | protocol.CallError]:
        """The reply to a call, once it is there."""
        return self._wait(lambda: self._replies.pop(call, None))

    def tool_reply(self, call: int) -> bytes | protocol.ToolFailure:
        """The reply to a call of a host tool, once it is there."""
        return self._wait(lambda: self._tool_replies.pop(call, None))  # type: ignore[return-value]  # mypy joins the union

    def descriptors(self, count: int) -> list[int]:
        """Descriptors that came beside the last message."""
        return [self._descriptors.popleft() for _ in range(count)]

    def _wait(self, take: Callable[[], T | None]) -> T:
        with self.interrupts.held(), self._changed:
            while True:
                value = take()
                if value is not None:
                    return value
                if self._leading:
                    with self.interrupts.let_in():
                        self._changed.wait()
                    continue
                self._leading = True
                self._changed.release()
                try:
                    with self.interrupts.let_in():
                        self._poller.poll()
                    payloads = self._read()
                finally:
                    self._changed.acquire()
                    self._leading = False
                    self._changed.notify_all()
                self._sort(payloads)

    def _wait_for_room(self) -> None:
        """Until more may be sent. Whoever waits for a message reads as ever; else this thread does."""
        poller = select.poll()
        with self._changed:
            leads = not self._leading
            self._leading = True
        if not leads:
            poller.register(self._sock, select.POLLOUT)
            poller.poll(_LEADER_MS)
            return
        payloads: list[bytes] = []
        try:
            poller.register(self._sock, select.POLLIN | select.POLLOUT)
            if any(events & ~select.POLLOUT for _, events in poller.poll()):
                payloads = self._read()
        finally:
            with self._changed:
                self._leading = False
                self._sort(payloads)
                self._changed.notify_all()

    def _sort(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            message = protocol.decode_to_guest(payload)
            if isinstance(message, protocol.Reply):
                self._replies[message.call] = message.results
            elif isinstance(message, protocol.ToolReply):
                self._tool_replies[message.call] = message.result
            else:
                self._orders.append(message)

    def _read(self) -> list[bytes]:
        data, ancillary, _, _ = self._sock.recvmsg(protocol.READ_BYTES, socket.CMSG_SPACE(8))
        for level, kind, packed in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._descriptors.extend(array.array("i", packed))
        if not data:
            os._exit(0)
        return self._frames.feed(data)


class Interrupts:
    """Keeps KeyboardInterrupt out of the channel's code but where it waits and holds nothing.

    Used by the main thread alone, where Python runs signal handlers; in other threads it does nothing.
    """

    def __init__(self) -> None:
        self._main = threading.get_ident()
        self._depth = 0
        self._open = False
        self._pending = False

    def arrive(self) -> None:
        """An interrupt is due: raise it here, or as soon as the channel lets it in."""
        if self._depth and not self._open:
            self._pending = True
        else:
            raise KeyboardInterrupt

    def held(self) -> _Held:
        """Hold interrupts back for a while."""
        return _Held(self)

    def let_in(self) -> _LetIn:
        """Within ``held``: here they may be raised."""
        return _LetIn(self)

    def clear(self) -> None:
        """Forget one that was held back: its cell has ended."""
        self._pending = False

    def enter(self, change: int) -> None:
        """Count into and out of ``held``."""
        if threading.get_ident() == self._main:
            self._depth += change
            if not self._depth and self._pending:
                self._pending = False
                raise KeyboardInterrupt

    def open(self, *, state: bool) -> None:
        """Open and close the inner window."""
        if threading.get_ident() == self._main:
            self._open = state
            if state and self._pending:
                self._pending = False
                self._open = False
                raise KeyboardInterrupt


class _Held:
    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts

    def __enter__(self) -> None:
        self._interrupts.enter(1)

    def __exit__(self, *_: object) -> None:
        self._interrupts.enter(-1)


class _LetIn:
    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts

    def __enter__(self) -> None:
        self._interrupts.open(state=True)

    def __exit__(self, *_: object) -> None:
        self._interrupts.open(state=False)
