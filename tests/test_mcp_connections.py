"""Connections to the HTTP server of MCP: who must make room, and who has waited too long."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from support import eventually

from supdist.engine.mcp.connections import (
    HEADER_SECONDS,
    MAX_STRANGERS,
    STALL_SECONDS,
    BoundedConnection,
    BoundedServer,
    bounded,
)

pytestmark = pytest.mark.anyio

LARGE = 64 << 20  # more than sockets hold
REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"


@dataclass(frozen=True)
class Place:
    """A server in this event loop; its application reads the body, and answers with it or with much."""

    server: BoundedServer
    port: int

    def call(self, data: bytes = b"") -> socket.socket:
        caller = socket.create_connection(("127.0.0.1", self.port))
        caller.setblocking(False)
        caller.sendall(data)
        return caller

    @property
    def connections(self) -> list[BoundedConnection]:
        return bounded(self.server.server_state.connections)

    async def only(self, condition: Callable[[BoundedConnection], bool]) -> BoundedConnection:
        await eventually(lambda: [condition(each) for each in self.connections] == [True])
        return self.connections[0]

    async def is_closed(self, connection: BoundedConnection, seconds: float) -> bool:
        connection.close_if_stalled(asyncio.get_running_loop().time() + seconds)
        return connection.transport.is_closing()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(LARGE) if body == b"much" else body})


@pytest.fixture
async def place() -> AsyncGenerator[Place]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = BoundedServer.of(echo, 8, 1)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield Place(server, listener.getsockname()[1])
    finally:
        server.should_exit = True
        for each in bounded(server.server_state.connections):
            each.transport.abort()
        await task


async def read(caller: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(caller, 4096)
    except ConnectionResetError:
        return b""


async def test_the_oldest_stranger_makes_room(place: Place) -> None:
    with ExitStack() as held:
        asked = held.enter_context(place.call(REQUEST))
        await place.only(lambda each: not each.is_stranger)
        first = held.enter_context(place.call(b"POST / HT"))
        await eventually(lambda: len(place.connections) == 2)
        for _ in range(MAX_STRANGERS):
            held.enter_context(place.call())
        assert await read(first) == b""
        assert len(place.connections) == MAX_STRANGERS + 1
        asked.sendall(b"good")
        assert b"good" in await read(asked), "who has sent a header is no stranger"


@pytest.mark.parametrize("data", [b"", b"POST / HTTP/1.1\r\nHo"])
async def test_a_header_has_a_deadline_that_no_trickle_moves(place: Place, data: bytes) -> None:
    with place.call(data) as caller:
        connection = await place.only(lambda each: each.is_stranger)
        before = connection.progress
        for _ in range(3):
            caller.sendall(b"P" if not data else b"s")
            await asyncio.sleep(0)
        assert not await place.is_closed(connection, HEADER_SECONDS - 1)
        assert connection.progress == before
        assert await place.is_closed(connection, HEADER_SECONDS + 1)


async def test_a_header_after_an_answer_has_a_deadline_too(place: Place) -> None:
    with place.call(REQUEST + b"good") as caller:
        assert await read(caller)
        caller.sendall(b"POST / HT")
        connection = await place.only(lambda each: not each.is_stranger)
        assert not await place.is_closed(connection, HEADER_SECONDS - 1)
        assert await place.is_closed(connection, HEADER_SECONDS + 1)


async def test_a_body_that_stops_ends_its_connection(place: Place) -> None:
    with place.call(REQUEST + b"go") as caller:
        connection = await place.only(lambda each: not each.is_stranger)
        assert not await place.is_closed(connection, STALL_SECONDS - 1)
        assert await place.is_closed(connection, STALL_SECONDS + 1)
        assert caller.fileno() >= 0


async def test_an_answer_that_is_not_read_ends_its_connection(place: Place) -> None:
    with place.call(REQUEST + b"much") as caller:
        connection = await place.only(lambda each: each.transport.get_write_buffer_size() > 0)
        assert not await place.is_closed(connection, STALL_SECONDS - 1)
        held = connection.transport.get_write_buffer_size()
        while connection.transport.get_write_buffer_size() == held:
            await asyncio.get_running_loop().sock_recv(caller, 1 << 20)
        assert not await place.is_closed(connection, STALL_SECONDS + 1), "it went on"
        assert await place.is_closed(connection, 2 * STALL_SECONDS + 2)
