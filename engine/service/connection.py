"""An engine's connection to a broker service: its making, its requests, its loss."""

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

import zmq
import zmq.asyncio

from ...handlers import Completion, ContextTooLong, HandlerError, Message, Rejected, Unavailable, Usage
from ..broker.handler_queue import CallTimeout
from ..errors import RemoteProtocolError, TaskError
from . import protocol
from .address import resolved
from .credit import Credit
from .keys import read_client_keys
from .protocol import Answer, Ask, Cancel, Failure, Hello, Offer, Probe, Refused, Welcome
from .sockets import borrowed, open_socket, receive, send_now, socket_events

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
class Peer:
    """A service, and how to get there."""

    address: str
    curve_keys: Path | None
    connect_seconds: float = 10.0


class Line:
    """An event loop's way to the service: a link, and another where it was lost."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._link: Link | None = None

    async def link(self) -> Link:
        """The link, connected. Those who ask at the same time wait for the same attempt."""
        if self._link is None or self._link.lost:
            self._link = Link(self._peer)
            self._link.start()
        link = self._link
        await asyncio.shield(link.welcome)
        return link

    async def close(self) -> None:
        """Disconnect."""
        if self._link is not None:
            await self._link.close()


class Link:
    """One connection. Once it is lost it stays so."""

    def __init__(self, peer: Peer) -> None:
        self.welcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.offers: Mapping[str, Offer] = {}
        self.lost = False
        self._peer = peer
        self._name = f"the broker at {peer.address}"
        self._hint = ""
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Answer | Failure]] = {}
        self._credit = Credit(protocol.CREDIT)

    def start(self) -> None:
        """Begin to connect; ``welcome`` tells the end of it."""
        self._task = asyncio.create_task(self._run())

    async def ask(self, role: str, messages: Sequence[Message], seconds: float) -> Completion:
        """See ``RemoteHandler.chat``."""
        number = next(self._numbers)
        payload = _request(number, role, messages)
        cost = protocol.cost(payload)
        try:
            async with asyncio.timeout(seconds):
                await self._credit.take(cost)
                try:
                    reply = await self._reply_to(number, payload)
                finally:
                    self._credit.give(cost)
        except TimeoutError:
            raise CallTimeout(f"{self._name} did not answer within {seconds:g} s") from None
        if isinstance(reply, Failure):
            raise protocol.error_of(reply)
        usage = Usage(reply.input_tokens, reply.output_tokens, reply.calls)
        return Completion(
            reply.text, usage, reply.finish_reason, reply.reasoning, reply.retries, reply.queued
        )

    async def close(self) -> None:
        """End the connection; what is under way fails."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _reply_to(self, number: int, payload: bytes) -> Answer | Failure:
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
            if not self.lost:
                send_now(self._socket, [payload])
                return
        except zmq.ZMQError:
            pass  # it is being lost
        raise self._gone()

    def _gone(self) -> Unavailable:
        return Unavailable(f"the connection to {self._name} was lost")

    async def _run(self) -> None:
        """The connection's life."""
        error: Exception = self._gone()
        try:
            async with self._connected() as monitor, asyncio.TaskGroup() as group:
                group.create_task(self._watch(monitor))
                group.create_task(self._read())
                group.create_task(self._be_welcome())
        except* (HandlerError, TaskError) as ended:
            error = ended.exceptions[0]
        finally:
            self._end(error)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncGenerator[zmq.asyncio.Socket]:
        """The socket, with its monitor."""
        address, folder = await self._address(), self._peer.curve_keys
        keys = read_client_keys(folder) if folder is not None else None
        context = zmq.asyncio.Context()
        self._socket = open_socket(context, zmq.DEALER, address)
        try:
            self._socket.setsockopt(zmq.SNDHWM, 0)  # credit bounds it
            if keys is not None:
                self._socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.pair.public)
                self._socket.setsockopt(zmq.CURVE_SECRETKEY, keys.pair.secret)
                self._socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server)
            monitor = self._socket.get_monitor_socket(_EVENTS)
            try:
                self._socket.connect(address)
            except zmq.ZMQError as error:
                raise TaskError(f"{address} is no address to connect to: {error.strerror}") from error
            send_now(self._socket, [protocol.encode(Hello(protocol.VERSION))])
            yield monitor
        finally:
            self._socket.disable_monitor()
            context.destroy(linger=0)

    async def _address(self) -> str:
        try:
            async with asyncio.timeout(self._peer.connect_seconds):
                return await resolved(self._peer.address)
        except TimeoutError as error:
            raise Unavailable(f"{self._name}: nobody told in time where this host is") from error
        except (OSError, UnicodeError) as error:
            raise Unavailable(f"{self._name}: this host is not known ({error})") from error

    async def _be_welcome(self) -> None:
        seconds = self._peer.connect_seconds
        await asyncio.wait([self.welcome], timeout=seconds)
        if not self.welcome.done():
            raise Unavailable(f"{self._name} did not answer within {seconds:g} s{self._hint}")

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        """Notice the end of the connection. Until it was established once, ZeroMQ tries again by itself."""
        established = False
        async for event, value in socket_events(monitor):
            match event:
                case zmq.EVENT_CONNECTED if self._peer.curve_keys is None:
                    self._check_owner(value)
                case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    established = True
                case zmq.EVENT_DISCONNECTED if established:
                    raise self._gone()
                case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    raise Rejected(
                        f"{self._name} does not know the key in {self._peer.curve_keys}: its owner makes one with "
                        "`supdist-engine broker keygen DIR --client NAME`"
                    )
                case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                    other = "wants keys (--curve-keys)" if self._peer.curve_keys is None else "has no keys"
                    raise Rejected(f"{self._name} {other}, or is none")
                case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL if self._peer.curve_keys is not None:
                    self._hint = f": is {self._peer.curve_keys}/server.key the key of this service?"
                case _:
                    pass

    def _check_owner(self, descriptor: int) -> None:
        """Without keys the other end of an ipc connection must be our own, or root's."""
        try:
            with borrowed(descriptor) as connection:
                facts = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return  # it has ended already
        owner = struct.unpack("3i", facts)[1]
        if owner not in (0, os.geteuid()):
            raise Rejected(f"{self._name} belongs to the user {owner}; one of another user needs keys")

    async def _read(self) -> None:
        while True:
            frame = await receive(self._socket)
            try:
                message = protocol.decode_from_service(frame.buffer)
            except RemoteProtocolError as error:
                raise Unavailable(f"{self._name} does not keep to the protocol: {error}") from error
            match message:
                case Welcome(offers):
                    self.offers = offers
                    if not self.welcome.done():
                        self.welcome.set_result(None)
                case Refused(version, full):
                    raise self._refusal(version, full=full)
                case Answer() | Failure():
                    answer = self._waiting.get(message.request)
                    if answer is not None and not answer.done():
                        answer.set_result(message)
                case Probe():
                    pass

    def _refusal(self, version: int, *, full: bool) -> HandlerError:
        if version == protocol.VERSION and full:
            return Unavailable(f"{self._name} has as many clients as it takes")
        return Rejected(
            f"{self._name} speaks version {version} of the protocol, this engine {protocol.VERSION}: "
            "install the same supdist-engine at both ends"
        )

    def _end(self, error: Exception) -> None:
        self.lost = True
        if not self.welcome.done():
            self.welcome.set_exception(error)
            self.welcome.exception()  # perhaps nobody waits for it any more
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(self._gone())
        self._credit.close(self._gone())


def _request(number: int, role: str, messages: Sequence[Message]) -> bytes:
    """A request, as it is sent.

    Raises:
        Rejected: the messages are none.
        ContextTooLong: they are too large to be sent.
    """
    turns: list[tuple[protocol.Role, str]] = [(message["role"], message["content"]) for message in messages]
    if not all(role in _ROLES and isinstance(content, str) for role, content in turns):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise Rejected("a message is a role (system, user or assistant) and a text")
    try:
        payload = protocol.encode(Ask(number, role, turns))
    except UnicodeEncodeError as error:
        raise Rejected("the messages hold what cannot be sent as text") from error
    if len(payload) > protocol.MAX_BYTES:
        raise ContextTooLong(f"the messages have {len(payload)} bytes; a broker takes {protocol.MAX_BYTES}")
    return payload
