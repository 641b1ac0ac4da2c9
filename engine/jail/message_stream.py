"""Exchange messages on a non-blocking socket."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import Protocol

from ...sandbox_image.protocol import READ_BYTES
from .attached import AttachedStream

# A peer that reads while we write must not keep us at it.
_SENT_AT_ONCE = 1 << 20


class Framing(Protocol):
    """Encodes and decodes messages, without I/O."""

    def frame(self, payload: bytes) -> bytes:
        """Encode a message."""
        ...

    def header(self, size: int) -> bytes:
        """Return what is sent before a message of this size."""
        ...

    def feed(self, data: bytes) -> list[bytes]:
        """Return the completed messages.

        Raises:
            Violation: invalid bytes.
        """
        ...


class MessageStream:
    """A stream of messages.

    Attributes:
        is_open: whether the peer has not closed it.
        unsent_bytes: what the socket has not taken.
    """

    def __init__(self, stream: socket.socket | AttachedStream, framing: Framing) -> None:
        stream.setblocking(False)
        self._stream = stream
        self._framing = framing
        self._out: deque[tuple[memoryview, list[int]]] = deque()
        self.is_open = True
        self.unsent_bytes = 0

    def __len__(self) -> int:
        """Return the number of unsent messages."""
        return len(self._out)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._stream.fileno()

    def send(self, payload: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message now, or when the socket takes it. Closes the descriptors."""
        self.send_raw(self._framing.frame(payload), descriptors)

    def send_raw(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send framed bytes."""
        self._queue(data, descriptors)
        self.flush()

    def send_pieces(self, pieces: Sequence[bytes]) -> None:
        """Send a message that is long, and so comes in pieces."""
        self._queue(self._framing.header(sum(map(len, pieces))), ())
        for piece in pieces:
            self._queue(piece, ())
        self.flush()

    def _queue(self, data: bytes, descriptors: Sequence[int]) -> None:
        self._out.append((memoryview(data), list(descriptors)))
        self.unsent_bytes += len(data)

    def flush(self) -> None:
        """Send what the socket takes, 1 MiB at most."""
        left = _SENT_AT_ONCE
        try:
            while self._out and left > 0:
                data, descriptors = self._out[0]
                sent = (
                    self._stream.send(data)
                    if not descriptors
                    else self._send_with_descriptors(data, descriptors)
                )
                self.unsent_bytes -= sent
                left -= sent
                if sent == len(data):
                    self._out.popleft()
                else:
                    # The descriptors went with the first byte (unix(7)).
                    self._out[0] = data[sent:], []
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            # The reader will see the end of the stream.
            self.discard_unsent()

    def discard_unsent(self) -> None:
        """Drop unsent messages."""
        for _, descriptors in self._out:
            for fd in descriptors:
                os.close(fd)
        self._out.clear()
        self.unsent_bytes = 0

    def _send_with_descriptors(self, data: memoryview, descriptors: list[int]) -> int:
        assert isinstance(self._stream, socket.socket)
        try:
            sent = socket.send_fds(self._stream, [data], descriptors)
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            # Too many descriptors of this user are in flight (unix(7)). The receiver then reports the missing
            # ones.
            sent = self._stream.send(data)
        while descriptors:
            os.close(descriptors.pop())
        return sent

    def drain(self, seconds: float) -> None:
        """Send what the socket takes in this time."""
        poller, until = select.poll(), time.monotonic() + seconds
        poller.register(self.fileno(), select.POLLOUT)
        while self._out and (left := until - time.monotonic()) > 0:
            poller.poll(left * 1000)
            self.flush()

    def receive(self) -> list[bytes] | None:
        """Return the completed messages; None if nothing arrived.

        Raises:
            Violation: invalid bytes.
        """
        try:
            data = self._stream.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            data = b""
        self.is_open = bool(data)
        return self._framing.feed(data)

    def close(self) -> None:
        """Close the socket."""
        self.is_open = False
        self.discard_unsent()
        self._stream.close()


class DescriptorPoller:
    """A ``select.poll`` with few changes."""

    # An unchanged registration costs no system call.

    def __init__(self) -> None:
        self._poller = select.poll()
        self._events: dict[int, int] = {}
        self._group: set[int] = set()

    def watch(self, fd: int, events: int) -> None:
        """Poll a descriptor for these events, or not at all."""
        if events == self._events.get(fd, 0):
            return
        self._events[fd] = events
        if not events:
            # Registered without events, it would still report the end of the stream, again and again.
            self._poller.unregister(fd)
        else:
            self._poller.register(fd, events)

    def watch_group(self, fds: Collection[int], events: int) -> None:
        """Poll these descriptors instead of the last group."""
        for fd in self._group.difference(fds):
            self.watch(fd, 0)
        for fd in fds:
            self.watch(fd, events)
        self._group = set(fds)

    def poll(self, milliseconds: int | None) -> dict[int, int]:
        """Wait; return events by descriptor."""
        return dict(self._poller.poll(milliseconds))
