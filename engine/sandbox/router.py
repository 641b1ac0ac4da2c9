"""The engine's ROUTER, with a stream to each shim."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TypeAlias

from ...sandbox_image import protocol
from ..jail.message_stream import MessageStream
from ..jail.zmtp import ZmtpConnection

_MESSAGES_A_TURN = 16

# Takes a peer's name and message. For a long message it returns the work that is left. Until that ends, the
# peer is not read.
OnMessage: TypeAlias = Callable[[bytes, bytes], Coroutine[object, object, None] | None]


class Router:
    """A ROUTER on one event loop, without threads.

    Args:
        on_message: gets a peer's name and message.
        on_disconnect: gets the name after the last message.
        sockets: holds those that are open, for a clean-up without the event loop.
    """

    # Peers take turns, and each turn of the event loop delivers a few messages. So a peer that sends
    # thousands does not delay the others.

    def __init__(
        self,
        on_message: OnMessage,
        on_disconnect: Callable[[bytes], None],
        sockets: set[socket.socket],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._on_disconnect = on_disconnect
        self._sockets = sockets
        self._connections: set[_Connection] = set()
        self._named: dict[bytes, _Connection] = {}
        # The connections with messages that were read and not delivered.
        self._turns: deque[_Connection] = deque()
        self._left = _MESSAGES_A_TURN
        self._next_turn_is_due = False

    def add(self, sock: socket.socket) -> None:
        """Add a peer by its socket, and send it the handshake."""
        # Each peer has a pair of sockets of its own. A listening socket would need a file, which a killed
        # engine leaves behind, and would accept nothing while the event loop is busy.
        connection = _Connection(sock)
        self._connections.add(connection)
        self._sockets.add(sock)
        connection.stream.send_raw(connection.peer.handshake)
        self._start_reading(connection)

    def send(self, name: bytes, payload: bytes) -> None:
        """Send a message to a peer, if it is connected."""
        # Unsent messages have no bound here: `AnswerWindow` bounds the replies, and other messages come one
        # at a time.
        connection = self._named.get(name)
        if connection is not None:
            connection.stream.send(payload)
            self._watch_writing(connection)

    def send_pieces(self, name: bytes, pieces: Sequence[bytes]) -> None:
        """Send a long message to a peer, if it is connected."""
        connection = self._named.get(name)
        if connection is not None:
            connection.stream.send_pieces(pieces)
            self._watch_writing(connection)

    def close(self) -> None:
        """Close all sockets. Nothing more is delivered."""
        self._turns.clear()
        for connection in list(self._connections):
            self._drop(connection)

    def _start_reading(self, connection: _Connection) -> None:
        if not connection.is_read and connection.stream.is_open:
            connection.is_read = True
            self._loop.add_reader(connection.fd, self._read, connection)

    def _stop_reading(self, connection: _Connection) -> None:
        if connection.is_read:
            connection.is_read = False
            self._loop.remove_reader(connection.fd)

    def _read(self, connection: _Connection) -> None:
        try:
            messages = connection.stream.receive() or []
            if connection.peer.is_ready and not connection.name:
                self._register(connection)
        except (protocol.Violation, OSError):
            # Not a shim of this engine.
            self._drop(connection)
            return
        connection.undelivered.extend(messages)
        if not connection.stream.is_open:
            if not connection.name:
                self._drop(connection)
                return
            connection.undelivered.append(None)
        if not connection.undelivered:
            return
        self._turns.append(connection)
        try:
            self._deliver()
        finally:
            # Also when a callback raises.
            if connection.undelivered or connection.work is not None or not connection.stream.is_open:
                self._stop_reading(connection)

    def _register(self, connection: _Connection) -> None:
        name = connection.peer.routing_id
        if not name or name in self._named:
            raise protocol.Violation("a peer without a unique name")
        connection.name = name
        self._named[name] = connection

    def _deliver(self) -> None:
        try:
            while self._turns and self._left:
                self._left -= 1
                connection = self._turns.popleft()
                # It may have been dropped meanwhile.
                if not connection.undelivered:
                    continue
                message = connection.undelivered.popleft()
                if message is None:
                    self._drop(connection)
                    self._on_disconnect(connection.name)
                    continue
                work = None
                try:
                    work = self._on_message(connection.name, message)
                finally:
                    # Also when it raises.
                    if work is None:
                        self._go_on(connection)
                    else:
                        connection.work = self._loop.create_task(work)
                        connection.work.add_done_callback(partial(self._end_work, connection))
        finally:
            # Also when a callback raises.
            if (self._turns or not self._left) and not self._next_turn_is_due:
                self._next_turn_is_due = True
                self._loop.call_soon(self._begin_turn)

    def _go_on(self, connection: _Connection) -> None:
        if connection.undelivered:
            self._turns.append(connection)
        else:
            self._start_reading(connection)

    def _end_work(self, connection: _Connection, work: asyncio.Task[None]) -> None:
        connection.work = None
        if not work.cancelled() and (error := work.exception()) is not None:
            self._loop.call_exception_handler({"message": "a message was not handled", "exception": error})
        self._go_on(connection)
        self._deliver()

    def _begin_turn(self) -> None:
        self._next_turn_is_due = False
        self._left = _MESSAGES_A_TURN
        self._deliver()

    def _watch_writing(self, connection: _Connection) -> None:
        if bool(connection.stream.unsent_bytes) == connection.is_written:
            return
        connection.is_written = not connection.is_written
        if connection.is_written:
            self._loop.add_writer(connection.fd, self._write, connection)
        else:
            self._loop.remove_writer(connection.fd)

    def _write(self, connection: _Connection) -> None:
        connection.stream.flush()
        self._watch_writing(connection)

    def _drop(self, connection: _Connection) -> None:
        self._stop_reading(connection)
        if connection.is_written:
            connection.is_written = False
            self._loop.remove_writer(connection.fd)
        self._connections.discard(connection)
        self._sockets.discard(connection.sock)
        self._named.pop(connection.name, None)
        connection.undelivered.clear()
        if connection.work is not None:
            connection.work.cancel()
        connection.stream.close()


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.peer = ZmtpConnection(b"ROUTER", protocol.MAX_FRAME_BYTES)
        self.stream = MessageStream(sock, self.peer)
        self.fd = sock.fileno()
        # Empty until the end of the handshake.
        self.name = b""
        # None stands for its end.
        self.undelivered: deque[bytes | None] = deque()
        # What is left to do for a long message.
        self.work: asyncio.Task[None] | None = None
        # Whether the event loop watches it for data, or for room.
        self.is_read = self.is_written = False
