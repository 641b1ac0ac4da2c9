"""The repl's end of its stream, for all its threads."""

from __future__ import annotations

import itertools
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from .. import protocol
from .interrupts import Interrupts

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
        self._parts: dict[int, list[str | protocol.CallError]] = {}
        self._tool_replies: dict[int, bytes | protocol.ToolFailure] = {}
        self._descriptors: deque[int] = deque()
        self._numbers = itertools.count(1)
        self._owner = os.getpid()
        self.interrupts = Interrupts()

    def send(self, message: protocol.FromGuest) -> None:
        """Send one message.

        Raises:
            RuntimeError: this process is a child of the repl.
            ReentryError: this thread is inside the channel.
        """
        self._check_process()
        with self.interrupts.section(), self._send_lock:
            self._write(message)

    def send_call(self, make: Callable[[int], protocol.Call | protocol.ToolCall]) -> int:
        """Send a call with the next number, and return the number. Raises as ``send``."""
        self._check_process()
        # One lock for both steps: the shim requires rising numbers.
        with self.interrupts.section(), self._send_lock:
            number = next(self._numbers)
            self._write(make(number))
        return number

    def _check_process(self) -> None:
        if os.getpid() != self._owner:
            raise RuntimeError(
                "worker, worker_batch, FINAL and host tools work only in the process of the cell, "
                "not in its children: use worker_batch(prompts), which asks many at once, or threads"
            )

    def _write(self, message: protocol.FromGuest) -> None:
        data = memoryview(protocol.frame(protocol.encode(message)))
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
        with self.interrupts.section(), self._changed:
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
                self._replies[message.call] = self._parts.pop(message.call, []) + message.results
            elif isinstance(message, protocol.ReplyPart):
                self._parts.setdefault(message.call, []).extend(message.results)
            elif isinstance(message, protocol.ToolReply):
                self._tool_replies[message.call] = message.result
            else:
                self._messages.append(message)

    def _read(self) -> list[bytes]:
        data, ancillary, _, _ = self._sock.recvmsg(protocol.READ_BYTES, socket.CMSG_SPACE(8))
        for level, kind, packed in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                # Not an array: an audit hook of the code would hear of it, and might raise.
                self._descriptors.extend(memoryview(packed).cast("i"))
        if not data:
            os._exit(0)
        return self._frames.feed(data)
