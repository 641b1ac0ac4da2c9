"""A stream of whole messages on a socket that must never hold up its reader or writer."""

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


class MessageStream:
    """Messages in and out, without blocking.

    Attributes:
        is_open: whether the other end is.
        unsent_bytes: bytes that the other end has not read yet.
    """

    def __init__(self, stream: socket.socket | AttachedStream, framing: Framing) -> None:
        stream.setblocking(False)
        self._stream = stream
        self._framing = framing
        self._out: deque[tuple[memoryview, list[int]]] = deque()
        self.is_open = True
        self.unsent_bytes = 0

    def __len__(self) -> int:
        """Messages that wait, one that has gone in part among them."""
        return len(self._out)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._stream.fileno()

    def send(self, payload: bytes, descriptors: Sequence[int] = ()) -> None:
        """Write a message, as much of it as there is room for now; beside it go descriptors, which are closed here then."""
        self.send_raw(self._framing.frame(payload), descriptors)

    def send_raw(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Write bytes that are framed already, as what the framing begins with is."""
        view = memoryview(data)
        self._out.append((view, list(descriptors)))
        self.unsent_bytes += len(view)
        self.flush()

    def flush(self) -> None:
        """Write what waits, as far as there is room."""
        try:
            while self._out:
                data, descriptors = self._out[0]
                sent = (
                    self._stream.send(data)
                    if not descriptors
                    else self._send_with_descriptors(data, descriptors)
                )
                self.unsent_bytes -= sent
                if sent == len(data):
                    self._out.popleft()
                else:
                    self._out[0] = data[sent:], []
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self.discard_unsent()  # that the other end is gone is seen where it is read

    def discard_unsent(self) -> None:
        """Give up what waits."""
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
            # Others of this user's have too many on their way. Whoever needed these says so, or dies of it.
            sent = self._stream.send(data)
        while descriptors:
            os.close(descriptors.pop())
        return sent

    def drain(self, seconds: float) -> None:
        """Write all that waits, or what of it the other end reads within that time."""
        poller, until = select.poll(), time.monotonic() + seconds
        poller.register(self.fileno(), select.POLLOUT)
        while self._out and (left := until - time.monotonic()) > 0:
            poller.poll(left * 1000)
            self.flush()

    def receive(self) -> list[bytes] | None:
        """The messages that are complete now; None where nothing has come.

        Raises:
            Violation: what came cannot be.
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
        """Close this end."""
        self.is_open = False
        self.discard_unsent()
        self._stream.close()


class DescriptorPoller:
    """Descriptors, and the events of ``select.poll`` that are waited for on each."""

    def __init__(self) -> None:
        self._poller = select.poll()
        self._events: dict[int, int] = {}
        self._group: set[int] = set()

    def watch(self, fd: int, events: int) -> None:
        """Wait for these from now on; for none, not even for its end."""
        before = self._events.get(fd, 0)
        if events == before:
            return
        self._events[fd] = events
        if not events:
            self._poller.unregister(fd)
        else:
            self._poller.register(fd, events)

    def watch_group(self, fds: Collection[int], events: int) -> None:
        """Wait for these events on these, and no longer on those that were named here before."""
        for fd in self._group.difference(fds):
            self.watch(fd, 0)
        for fd in fds:
            self.watch(fd, events)
        self._group = set(fds)

    def poll(self, milliseconds: int | None) -> dict[int, int]:
        """What has come true, once something has or the time is over."""
        return dict(self._poller.poll(milliseconds))
