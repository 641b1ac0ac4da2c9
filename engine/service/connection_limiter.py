"""The connections of a service, below ZeroMQ: their number, what each has sent, and how to hang up.

libzmq queues what it receives, and keeps all frames of a message until the last has come: a client that sends faster
than it is read, or frame after frame, would fill the memory. The limit that libzmq has for the first must not be used
(see ``sockets.py``), for the second it has none, and no means to end one connection. All three are done here, on the
descriptors that its monitor tells of.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any

import zmq
import zmq.asyncio

from . import protocol
from .sockets import borrowed, socket_events

MAX_CONNECTIONS = 1024
MAX_UNDELIVERED = protocol.CREDIT + 2 * protocol.MAX_BYTES
"""Bytes that came through a tcp connection and are in no message that was delivered. Its credit keeps an engine below."""

_LOOK_SECONDS = 0.25
_SEAL_BYTES = 33  # of a CURVE message: its name (8), a nonce (8), a box (16) and flags (1)
_BYTES_RECEIVED = 128  # tcpi_bytes_received in Linux's struct tcp_info


class Gate:
    """Watches the connections to one listening socket."""

    def __init__(
        self, listener: zmq.asyncio.Socket, on_close: Callable[[], None], on_trouble: Callable[[str], None]
    ) -> None:
        """``on_close`` is called when some connection has ended, ``on_trouble`` with a line about one that had to."""
        self._monitor = listener.get_monitor_socket(
            zmq.EVENT_LISTENING | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
        )
        self._on_close = on_close
        self._on_trouble = on_trouble
        self._own_name: object = None
        self._delivered: dict[int, int] = {}

    async def watch(self) -> None:
        """Keep order, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._inspect())

    def delivered(self, descriptor: int, frame_bytes: int) -> None:
        """A frame of this size was received of a connection."""
        if descriptor in self._delivered:
            sealed = frame_bytes + _SEAL_BYTES
            self._delivered[descriptor] += sealed + (2 if sealed <= 255 else 9)  # with its length before it

    def hang_up(self, descriptor: int) -> None:
        """End a connection, if it is still there."""
        try:
            with borrowed(descriptor) as connection:
                # By now the number may be something else's, which is no business of the gate.
                if _local_name(connection) == self._own_name:
                    connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it has ended by itself

    async def _follow(self) -> None:
        async for event, descriptor in socket_events(self._monitor):
            if event == zmq.EVENT_LISTENING:
                with borrowed(descriptor) as listener:
                    self._own_name = _local_name(listener)
            elif event == zmq.EVENT_ACCEPTED:
                self._delivered[descriptor] = 0
                if len(self._delivered) > MAX_CONNECTIONS:
                    self.hang_up(descriptor)
            else:
                self._delivered.pop(descriptor, None)
                self._on_close()

    async def _inspect(self) -> None:
        """Hang up on those who send too much, or what does not end."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for descriptor, delivered in self._delivered.items():
                if self._bytes_sent_by(descriptor) - delivered > MAX_UNDELIVERED:
                    self.hang_up(descriptor)
                    self._on_trouble("hung up on an engine: it sends too much, or a message without end")

    def _bytes_sent_by(self, descriptor: int) -> int:
        """What has come through a tcp connection; those of ipc are not counted: they are the owner's own processes."""
        try:
            with borrowed(descriptor) as connection:
                if connection.family == socket.AF_UNIX:
                    return 0
                facts = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED + 8)
                return struct.unpack_from("=Q", facts, _BYTES_RECEIVED)[0]
        except (OSError, struct.error):
            return 0


def _local_name(connection: socket.socket) -> object:
    """The end of a connection that is ours: the port, or the path."""
    name: Any = connection.getsockname()
    return name if connection.family == socket.AF_UNIX else name[1]
