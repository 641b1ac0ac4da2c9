"""A stream of whole messages on a socket that must never hold up its reader or writer."""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from typing import Protocol

from ..protocol import READ_BYTES
from .attached import AttachedStream


class Framing(Protocol):
    """How messages stand in a stream of bytes. Does no I/O."""

    def frame(self, payload: bytes) -> bytes:
        """A message as bytes."""
        ...

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete now.

        Raises:
            Violation: these bytes cannot be.
        """
        ...


class Lane:
    """Messages in and out, without blocking.

    Attributes:
        is_open: whether the other end is.
        waiting: bytes that the other end has not read yet.
    """

    def __init__(self, stream: socket.socket | AttachedStream, framing: Framing) -> None:
        stream.setblocking(False)
        self._stream = stream
        self._framing = framing
        self._out: deque[memoryview] = deque()
        self.is_open = True
        self.waiting = 0

    def __len__(self) -> int:
        """Messages that wait, one that has gone in part among them."""
        return len(self._out)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._stream.fileno()

    def send(self, payload: bytes) -> None:
        """Write a message, as much of it as there is room for now."""
        self.begin(self._framing.frame(payload))

    def begin(self, opening: bytes) -> None:
        """Write what is no message, but what the framing begins with."""
        data = memoryview(opening)
        self._out.append(data)
        self.waiting += len(data)
        self.flush()

    def flush(self) -> None:
        """Write what waits, as far as there is room."""
        try:
            while self._out:
                sent = self._stream.send(self._out[0])
                self.waiting -= sent
                if sent == len(self._out[0]):
                    self._out.popleft()
                else:
                    self._out[0] = self._out[0][sent:]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self._out.clear()  # its death is seen, with its reason, where the main stream is read
            self.waiting = 0

    def drain(self, seconds: float) -> None:
        """Write all that waits, or what of it the other end reads within that time."""
        poller, until = select.poll(), time.monotonic() + seconds
        poller.register(self.fileno(), select.POLLOUT)
        while self._out and (left := until - time.monotonic()) > 0:
            poller.poll(left * 1000)
            self.flush()

    def receive(self) -> list[bytes]:
        """The messages that are complete now.

        Raises:
            Violation: what came cannot be.
        """
        try:
            data = self._stream.recv(READ_BYTES)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            data = b""
        self.is_open = bool(data)
        return self._framing.feed(data)

    def close(self) -> None:
        """Close this end."""
        self._stream.close()


class Waits:
    """Descriptors, and the events of ``select.poll`` that are waited for on each."""

    def __init__(self) -> None:
        self._poller = select.poll()
        self._events: dict[int, int] = {}

    def on(self, fd: int, events: int) -> None:
        """Wait for these from now on; for none, not even for its end."""
        before = self._events.get(fd, 0)
        if events == before:
            return
        self._events[fd] = events
        if not events:
            self._poller.unregister(fd)
        else:
            self._poller.register(fd, events)

    def wait(self, milliseconds: int | None) -> dict[int, int]:
        """What has come true, once something has or the time is over."""
        return dict(self._poller.poll(milliseconds))
