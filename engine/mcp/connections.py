"""Bound what connections without the token, and slow ones, take from the owner of an HTTP server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

# Connections that have not sent a whole header yet. Beyond it the oldest is closed.
MAX_STRANGERS = 128
# For a whole header, from the connection or the end of the last answer.
HEADER_SECONDS = 10.0
# Without a byte of a body that the server waits for, or of an answer that the client reads.
STALL_SECONDS = 30.0

# asyncio accepts as many connections at a time. Fewer than MAX_STRANGERS: the request of an accepted client
# is then read before others push the client out.
_ACCEPT_AT_ONCE = MAX_STRANGERS // 2
# The kernel's queue. If it is full, a client's connection is tried again after a second.
_KERNEL_BACKLOG = 1024


class BoundedConnection(H11Protocol):
    """A connection that ends when its peer stalls."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._progress = self.loop.time()
        self._unread = 0
        self._has_header = False

    @property
    def progress(self) -> float:
        """When the peer last made progress."""
        return self._progress

    @property
    def is_stranger(self) -> bool:
        """Whether no header has come. A request without the token ends its connection."""
        return not self._has_header and not self.transport.is_closing()

    def connection_made(  # type: ignore[override]  # as uvicorn has it
        self, transport: asyncio.Transport
    ) -> None:
        """Begin; if too many connections wait for a header, close the oldest of them."""
        super().connection_made(transport)
        strangers = [each for each in bounded(self.connections) if each.is_stranger]
        if len(strangers) > MAX_STRANGERS:
            min(strangers, key=lambda each: each.progress).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read; a part of a header is no progress."""
        was_in_header = self.conn.their_state is h11.IDLE
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._has_header = True
        elif was_in_header:
            return
        self._progress = self.loop.time()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._progress = self.loop.time()
        super().on_response_complete()

    def close_if_stalled(self, now: float) -> None:
        """End the connection if the server has waited too long for its peer."""
        unread = self.transport.get_write_buffer_size()
        if unread < self._unread:
            self._progress = now
        self._unread = unread
        in_body = self.conn.their_state is h11.SEND_BODY and not self.flow.read_paused
        if unread > 0 or in_body:
            most = STALL_SECONDS
        elif self.conn.their_state is h11.IDLE:
            most = HEADER_SECONDS
        else:
            return  # the application is at work
        if now - self._progress > most:
            self.transport.abort()


def bounded(connections: Iterable[object]) -> list[BoundedConnection]:
    """Return the connections of this module's class, which are all that its server has."""
    return [each for each in connections if isinstance(each, BoundedConnection)]


class BoundedServer(uvicorn.Server):
    """A server of bounded connections; the caller handles signals."""

    @classmethod
    def of(cls, app: Any, connections: int, grace: int) -> BoundedServer:
        """Return a server of an application.

        Args:
            connections: the most at once with the token.
            grace: seconds for open requests at the end.
        """
        config = uvicorn.Config(
            app,
            http=BoundedConnection,
            lifespan="off",
            log_config=None,
            log_level="error",  # broken requests of others are not shown on stderr
            access_log=False,
            server_header=False,
            ws="none",
            backlog=_ACCEPT_AT_ONCE,
            limit_concurrency=connections + MAX_STRANGERS,
            timeout_graceful_shutdown=grace,
        )
        return cls(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(_KERNEL_BACKLOG)

    async def on_tick(self, counter: int) -> bool:
        """End stalled connections, ten times a second."""
        now = asyncio.get_running_loop().time()
        for each in bounded(self.server_state.connections):
            each.close_if_stalled(now)
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave signals alone."""
        # uvicorn would raise them again before the clean-up.
        yield
