"""The engine's ROUTER: the Unix socket that shims connect to, and whose message came from whom."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable

from ...sandbox_image import protocol
from ..jail.message_stream import MessageStream
from ..jail.zmtp import Peer

_BACKLOG = 1024  # shims that connect at once
_MESSAGES_A_TURN = 16
_ACCEPTED_A_TURN = 16
_SECONDS_WITHOUT_DESCRIPTORS = 0.2
_NONE_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Router:
    """Belongs to one event loop, which reads and writes its sockets itself: there is no thread between.

    Messages come in the order in which a peer sent them, a few of them in a turn of the event loop, and from peers in
    turn: one that sends thousands delays what else is due, and what others sent, by a few.

    Args:
        path: where the socket is.
        hear: called with a peer's name and a message of it.
        lose: called with a peer's name when all that it sent has been heard, and it is gone.
    """

    def __init__(
        self, path: str, hear: Callable[[bytes, bytes], None], lose: Callable[[bytes], None]
    ) -> None:
        self._path = path
        self._hear = hear
        self._lose = lose
        self._peers: set[_Connection] = set()
        self._named: dict[bytes, _Connection] = {}
        self._turn: deque[_Connection] = deque()  # who has been read and not been heard
        self._left = _MESSAGES_A_TURN
        self._next_turn_is_due = False

    def open(self) -> None:
        """Listen.

        Raises:
            OSError: the kernel does not make the socket.
        """
        self._loop = asyncio.get_running_loop()
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listening.setblocking(False)
            self._listening.bind(self._path)
            self._listening.listen(_BACKLOG)
        except OSError:
            self._listening.close()
            raise
        self._loop.add_reader(self._listening, self._accept)

    def send(self, name: bytes, payload: bytes) -> None:
        """Send a message to a peer, as much of it as there is room for now, and the rest when there is. Nothing to one
        that is gone or has not come yet.

        What waits has no bound here: it is what guests asked for, which is bounded, and dropping it would lose a reply.
        """
        connection = self._named.get(name)
        if connection is not None:
            connection.lane.send(payload)
            self._write_when_possible(connection)

    def close(self) -> None:
        """Close all; nothing is heard any more."""
        self._loop.remove_reader(self._listening)
        self._listening.close()
        self._turn.clear()
        for connection in list(self._peers):
            self._drop(connection)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_A_TURN):
            try:
                stream, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NONE_LEFT:  # it stays readable: to look again at once would be to spin
                    self._loop.remove_reader(self._listening)
                    self._loop.call_later(_SECONDS_WITHOUT_DESCRIPTORS, self._accept_again)
                return
            connection = _Connection(stream)
            self._peers.add(connection)
            connection.lane.send_raw(connection.peer.handshake)
            self._listen(connection)

    def _accept_again(self) -> None:
        if self._listening.fileno() >= 0:
            self._loop.add_reader(self._listening, self._accept)

    def _listen(self, connection: _Connection) -> None:
        if not connection.is_read and connection.lane.is_open:
            connection.is_read = True
            self._loop.add_reader(connection.fd, self._read, connection)

    def _listen_no_more(self, connection: _Connection) -> None:
        if connection.is_read:
            connection.is_read = False
            self._loop.remove_reader(connection.fd)

    def _read(self, connection: _Connection) -> None:
        try:
            messages = connection.lane.receive() or []
            if connection.peer.is_ready and not connection.name:
                self._name(connection)
        except (protocol.Violation, OSError):  # none of ours
            self._drop(connection)
            return
        connection.heard.extend(messages)
        if not connection.lane.is_open:
            if not connection.name:
                self._drop(connection)
                return
            connection.heard.append(None)
        if not connection.heard:
            return
        self._turn.append(connection)
        try:
            self._deliver()
        finally:  # whatever those who hear may raise
            if connection.heard or not connection.lane.is_open:
                self._listen_no_more(connection)

    def _name(self, connection: _Connection) -> None:
        name = connection.peer.routing_id
        if not name or name in self._named:
            raise protocol.Violation("a peer without a name of its own")
        connection.name = name
        self._named[name] = connection

    def _deliver(self) -> None:
        """What was read, as much as this turn may still hear."""
        try:
            while self._turn and self._left:
                self._left -= 1
                connection = self._turn.popleft()
                if not connection.heard:  # it was dropped meanwhile
                    continue
                message = connection.heard.popleft()
                if connection.heard:
                    self._turn.append(connection)
                elif message is not None:
                    self._listen(connection)
                if message is None:
                    self._drop(connection)
                    self._lose(connection.name)
                else:
                    self._hear(connection.name, message)
        finally:  # whatever those who hear may raise
            if (self._turn or not self._left) and not self._next_turn_is_due:
                self._next_turn_is_due = True
                self._loop.call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._next_turn_is_due = False
        self._left = _MESSAGES_A_TURN
        self._deliver()

    def _write_when_possible(self, connection: _Connection) -> None:
        if bool(connection.lane.unsent_bytes) == connection.is_written:
            return
        connection.is_written = not connection.is_written
        if connection.is_written:
            self._loop.add_writer(connection.fd, self._write, connection)
        else:
            self._loop.remove_writer(connection.fd)

    def _write(self, connection: _Connection) -> None:
        connection.lane.flush()
        self._write_when_possible(connection)

    def _drop(self, connection: _Connection) -> None:
        self._listen_no_more(connection)
        if connection.is_written:
            connection.is_written = False
            self._loop.remove_writer(connection.fd)
        self._peers.discard(connection)
        self._named.pop(connection.name, None)
        connection.heard.clear()
        connection.lane.close()


class _Connection:
    """A peer that has connected.

    Attributes:
        name: its own; none until the handshake's end.
        heard: its messages that have been read, and None once it is gone.
        is_read, is_written: whether the event loop waits for what it sends, or for room.
    """

    def __init__(self, stream: socket.socket) -> None:
        self.peer = Peer(b"ROUTER", protocol.MAX_FRAME_BYTES)
        self.lane = MessageStream(stream, self.peer)
        self.fd = stream.fileno()
        self.name = b""
        self.heard: deque[bytes | None] = deque()
        self.is_read = self.is_written = False
