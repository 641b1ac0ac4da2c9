"""An engine's connection to a model server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import struct
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import msgspec
import zmq
import zmq.asyncio

from ...handlers import (
    Completion,
    ContextTooLong,
    HandlerError,
    Message,
    Rejected,
    Unavailable,
    Unreachable,
    Usage,
)
from ..broker.handler_queue import CallTimeout
from ..errors import RemoteProtocolError, TaskError
from . import protocol
from .address import resolve_host
from .credit import Credit
from .keys import read_client_keys
from .protocol import Cancel, ChatReply, ChatRequest, Failure, Hello, Offer, Probe, Refused, Welcome
from .sockets import duplicated_socket, open_socket, receive_frame, send_now, socket_events

_ROLES = frozenset(get_args(protocol.Role))
_EVENTS = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The address of a model server, and the keys for it."""

    address: str
    curve_keys: Path | None
    connect_seconds: float = 10.0


class ReconnectingConnection:
    """Keeps a connection to a model server, and opens a new one after a loss."""

    def __init__(self, server: ServerAddress) -> None:
        self._server = server
        self._connection: Connection | None = None

    async def connection(self) -> Connection:
        """Return the connection once the server has accepted it.

        Raises:
            HandlerError: the server cannot be reached, or refuses.
            TaskError: the address or the keys cannot be used.
        """
        if self._connection is None or self._connection.lost:
            self._connection = Connection.open(self._server)
        connection = self._connection
        await asyncio.shield(connection.welcome)
        return connection

    async def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            await self._connection.close()


class Connection:
    """One connection to a model server. A lost one stays lost.

    Attributes:
        welcome: done when the server has accepted or refused the connection.
        offers: the server's models by role.
    """

    def __init__(self, server: ServerAddress) -> None:
        self.welcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.offers: Mapping[str, Offer] = {}
        self.lost = False
        self._server = server
        self._name = f"the broker at {server.address}"
        self._hint = ""
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[ChatReply | Failure]] = {}
        self._credit = Credit(protocol.CREDIT)
        self._socket: zmq.asyncio.Socket | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def open(cls, server: ServerAddress) -> Connection:
        """Start to connect."""
        connection = cls(server)
        connection._task = asyncio.create_task(connection._run())
        return connection

    async def request(self, role: str, messages: Sequence[Message], seconds: float) -> Completion:
        """Send one request and wait for its answer."""
        number = next(self._numbers)
        payload = _encode_request(number, role, messages)
        cost = protocol.cost(payload)
        try:
            async with asyncio.timeout(seconds):
                await self._credit.acquire(cost)
                try:
                    reply = await self._reply_to(number, payload)
                finally:
                    self._credit.release(cost)
        except TimeoutError:
            raise CallTimeout(f"{self._name} did not answer within {seconds:g} s") from None
        if isinstance(reply, Failure):
            raise protocol.error_of(reply)
        usage = Usage(*msgspec.structs.astuple(reply.usage))
        return Completion(
            reply.text, usage, reply.finish_reason, reply.reasoning, reply.retries, reply.queued
        )

    async def close(self) -> None:
        """Disconnect. Requests under way fail."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _reply_to(self, number: int, payload: bytes) -> ChatReply | Failure:
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(payload)
            return await answer
        finally:
            del self._waiting[number]
            if answer.cancelled():
                with contextlib.suppress(Unavailable):
                    self._send(protocol.encode(Cancel(number)))

    def _send(self, payload: bytes) -> None:
        try:
            if not self.lost and self._socket is not None:
                send_now(self._socket, [payload])
                return
        except zmq.ZMQError:
            pass  # the connection is ending: report it as lost
        raise self._lost_error()

    def _lost_error(self) -> Unavailable:
        return Unavailable(f"the connection to {self._name} was lost")

    async def _run(self) -> None:
        error: Exception = self._lost_error()
        try:
            async with self._connected() as (opened, monitor), asyncio.TaskGroup() as group:
                group.create_task(self._watch(monitor))
                group.create_task(self._read(opened))
                group.create_task(self._wait_for_welcome())
        except* (HandlerError, TaskError) as ended:
            error = ended.exceptions[0]
        finally:
            self._end(error)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncGenerator[tuple[zmq.asyncio.Socket, zmq.asyncio.Socket]]:
        address, folder = await self._address(), self._server.curve_keys
        keys = read_client_keys(folder) if folder is not None else None
        context = zmq.asyncio.Context()
        opened = self._socket = open_socket(context, zmq.DEALER, address)
        try:
            # Credit bounds what is queued.
            opened.setsockopt(zmq.SNDHWM, 0)
            if keys is not None:
                opened.setsockopt(zmq.CURVE_PUBLICKEY, keys.pair.public)
                opened.setsockopt(zmq.CURVE_SECRETKEY, keys.pair.secret)
                opened.setsockopt(zmq.CURVE_SERVERKEY, keys.server)
            monitor = opened.get_monitor_socket(_EVENTS)
            try:
                opened.connect(address)
            except zmq.ZMQError as error:
                raise TaskError(f"{address} is no address to connect to: {error.strerror}") from error
            send_now(opened, [protocol.encode(Hello(protocol.VERSION))])
            yield opened, monitor
        finally:
            opened.disable_monitor()
            context.destroy(linger=0)

    async def _address(self) -> str:
        try:
            async with asyncio.timeout(self._server.connect_seconds):
                return await resolve_host(self._server.address)
        except TimeoutError as error:
            raise Unreachable(
                f"{self._name}: DNS lookup of the host timed out after {self._server.connect_seconds:g} s"
            ) from error
        except (OSError, UnicodeError) as error:
            raise Unreachable(f"{self._name}: DNS lookup of the host failed ({error})") from error

    async def _wait_for_welcome(self) -> None:
        seconds = self._server.connect_seconds
        await asyncio.wait([self.welcome], timeout=seconds)
        if not self.welcome.done():
            raise Unreachable(f"{self._name} did not answer within {seconds:g} s{self._hint}")

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        # Before the handshake, a disconnect is a retry of libzmq and not a loss.
        established = False
        async for event, value in socket_events(monitor):
            match event:
                case zmq.EVENT_CONNECTED if self._server.curve_keys is None:
                    self._check_owner(value)
                case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    established = True
                case zmq.EVENT_DISCONNECTED if established:
                    raise self._lost_error()
                case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    raise Rejected(
                        f"{self._name} does not know the key in {self._server.curve_keys}: its owner makes "
                        "one with `supdist-engine broker keygen DIR --client NAME`"
                    )
                case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                    other = (
                        "requires keys (--curve-keys)" if self._server.curve_keys is None else "has no keys"
                    )
                    raise Rejected(f"{self._name} {other}, or is no broker")
                case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL if self._server.curve_keys is not None:
                    self._hint = f"; check that {self._server.curve_keys}/server.key is its key"
                case _:
                    pass

    # Without keys, only a server of this user or root is trusted.
    def _check_owner(self, descriptor: int) -> None:
        try:
            with duplicated_socket(descriptor) as connection:
                credentials = connection.getsockopt(
                    socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
                )
        except OSError:
            return  # the connection has ended already
        owner = struct.unpack("3i", credentials)[1]
        if owner not in (0, os.geteuid()):
            raise Rejected(
                f"{self._name} runs as user {owner}; a broker of another user needs keys (--curve-keys)"
            )

    async def _read(self, opened: zmq.asyncio.Socket) -> None:
        while True:
            frame = await receive_frame(opened)
            try:
                message = protocol.decode_from_service(frame.buffer)
            except RemoteProtocolError as error:
                raise Unavailable(f"{self._name} broke the protocol: {error}") from error
            match message:
                case Welcome(offers):
                    self.offers = offers
                    if not self.welcome.done():
                        self.welcome.set_result(None)
                case Refused(version, full):
                    raise self._refusal(version, full=full)
                case ChatReply() | Failure():
                    answer = self._waiting.get(message.request)
                    if answer is not None and not answer.done():
                        answer.set_result(message)
                case Probe():
                    pass

    def _refusal(self, version: int, *, full: bool) -> HandlerError:
        if version == protocol.VERSION and full:
            return Unavailable(f"{self._name} is full: it takes no more clients")
        return Rejected(
            f"{self._name} uses protocol version {version}, this engine {protocol.VERSION}: "
            "install the same supdist-engine at both ends"
        )

    def _end(self, error: Exception) -> None:
        self.lost = True
        if not self.welcome.done():
            self.welcome.set_exception(error)
            # If no caller waits any more, asyncio must not log the exception.
            self.welcome.exception()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(self._lost_error())
        self._credit.close(self._lost_error())


def _encode_request(number: int, role: str, messages: Sequence[Message]) -> bytes:
    turns: list[tuple[protocol.Role, str]] = [(message["role"], message["content"]) for message in messages]
    # Callers without a type checker may pass anything.
    if not all(role in _ROLES and isinstance(content, str) for role, content in turns):  # pyright: ignore[reportUnnecessaryIsInstance]  # as above
        raise Rejected("a message is a role (system, user or assistant) and a text")
    try:
        payload = protocol.encode(ChatRequest(number, role, turns))
    except UnicodeEncodeError as error:
        raise Rejected("the messages cannot be encoded as text") from error
    if len(payload) > protocol.MAX_BYTES:
        raise ContextTooLong(f"the messages have {len(payload)} bytes; a broker takes {protocol.MAX_BYTES}")
    return payload
