"""Limits on the connections of a model server, below ZeroMQ."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any

import zmq
import zmq.asyncio

from . import protocol
from .sockets import duplicated_socket, socket_events

MAX_CONNECTIONS = 1024
# Bytes of a tcp connection that are in no delivered message. Credit keeps an honest engine below it.
MAX_UNDELIVERED = protocol.CREDIT + 2 * protocol.MAX_BYTES

_CHECK_SECONDS = 0.25
_CURVE_OVERHEAD = 33  # of a CURVE message: its name (8), a nonce (8), a box (16) and flags (1)
_BYTES_RECEIVED = 128  # tcpi_bytes_received in Linux's struct tcp_info


# libzmq keeps a message until its last frame: an endless one would fill the memory. Its receive limit must
# not be used (see sockets.py), and it cannot end one connection. So this class works on descriptors.
class ConnectionLimiter:
    """Limits the connections of one listening socket."""

    def __init__(
        self, listener: zmq.asyncio.Socket, on_close: Callable[[], None], on_trouble: Callable[[str], None]
    ) -> None:
        """Call ``on_close`` at every end, ``on_trouble`` at a forced one."""
        self._monitor = listener.get_monitor_socket(
            zmq.EVENT_LISTENING | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
        )
        self._on_close = on_close
        self._on_trouble = on_trouble
        self._listener_name: object = None
        self._delivered: dict[int, int] = {}
        self._silent: dict[int, None] = {}  # no frame has come yet; the oldest is first

    async def watch(self) -> None:
        """Apply the limits until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_events())
            group.create_task(self._check_bytes())

    def count_frame(self, descriptor: int, frame_bytes: int) -> None:
        """Count a received frame."""
        self._silent.pop(descriptor, None)
        if descriptor in self._delivered:
            sealed = frame_bytes + _CURVE_OVERHEAD
            self._delivered[descriptor] += sealed + (2 if sealed <= 255 else 9)  # with its length before it

    def disconnect(self, descriptor: int) -> None:
        """End a connection if it is still there."""
        try:
            with duplicated_socket(descriptor) as connection:
                # By now the descriptor may belong to something else.
                if _local_name(connection) == self._listener_name:
                    connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the connection has ended already

    async def _watch_events(self) -> None:
        async for event, descriptor in socket_events(self._monitor):
            if event == zmq.EVENT_LISTENING:
                with duplicated_socket(descriptor) as listener:
                    self._listener_name = _local_name(listener)
            elif event == zmq.EVENT_ACCEPTED:
                self._delivered[descriptor] = 0
                self._silent[descriptor] = None
                if len(self._delivered) > MAX_CONNECTIONS:
                    self._make_room()
            else:
                self._delivered.pop(descriptor, None)
                self._silent.pop(descriptor, None)
                self._on_close()

    # A crowd that only connects must not keep out an engine, which sends its Hello within milliseconds.
    def _make_room(self) -> None:
        oldest = next(iter(self._silent), None)
        if oldest is None:
            oldest = next(reversed(self._delivered))
        self._silent.pop(oldest, None)
        self.disconnect(oldest)

    async def _check_bytes(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            # A message without an end is never delivered, but its bytes have come.
            for descriptor, delivered in self._delivered.items():
                if self._bytes_sent_by(descriptor) - delivered > MAX_UNDELIVERED:
                    self.disconnect(descriptor)
                    self._on_trouble("disconnected an engine: it sends too much, or a message without end")

    def _bytes_sent_by(self, descriptor: int) -> int:
        try:
            with duplicated_socket(descriptor) as connection:
                if connection.family == socket.AF_UNIX:
                    return 0
                tcp_info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED + 8)
                return struct.unpack_from("=Q", tcp_info, _BYTES_RECEIVED)[0]
        except (OSError, struct.error):
            return 0


def _local_name(connection: socket.socket) -> object:
    name: Any = connection.getsockname()
    return name if connection.family == socket.AF_UNIX else name[1]
