"""The service: models beside their accelerator, for the engines of many processes and machines.

It knows requests and nothing else: budgets, caches and logs are the engines' own. Each engine has a queue for each
model (see ``dispatch.py``), so none waits for the flood of another. An engine is known to us, but a fault of its own
must not be one of the others: what it may have under way is bounded, and what breaks the protocol is hung up on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec
import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from ...handlers import Completion, Message, ModelHandler, Rejected, Unavailable
from ...sandbox_image.text import replace_surrogates
from ..broker.dispatch import Dispatcher
from ..broker.handler_queue import Request, RequestQueue
from ..errors import RemoteProtocolError, TaskError
from . import protocol
from .address import check_address, ipc_path, private_socket
from .connection_limiter import Gate
from .keys import ServerKeys
from .protocol import Answer, Ask, Cancel, Hello, Offer, Probe, Refused, Welcome
from .sockets import open_socket, receive, send_now

T = TypeVar("T")

MAX_ENGINES = 256
MAX_UNREAD = 2048
"""Messages that an engine may leave unread."""

_PROBE_SECONDS = 1.0
_FAREWELL_SECONDS = 2.0
_ZAP_DOMAIN = "supdist"
_LOGIN = re.compile(r"://[^/@\s\"]+@")


@dataclass(frozen=True, slots=True)
class Load:
    """What a service is doing: engines connected, requests at the models, requests waiting, requests answered."""

    engines: int
    running: int
    queued: int
    done: int


@dataclass(eq=False, slots=True)
class _Engine:
    """A connected engine."""

    route: bytes
    descriptor: int
    queues: dict[str, RequestQueue]
    pending: dict[int, _Asked] = field(default_factory=dict[int, "_Asked"])
    room: int = protocol.CREDIT

    def forget(self, asked: _Asked) -> None:
        """A request has ended."""
        del self.pending[asked.number]
        self.room += asked.cost


class Service:
    """Serves models at an address for as long as it is entered and ``serve`` runs."""

    def __init__(
        self,
        handlers: Mapping[str, ModelHandler],
        address: str,
        *,
        keys: ServerKeys | None = None,
        on_trouble: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            handlers: the models, by role.
            address: ``ipc://PATH``, or ``tcp://HOST:PORT``, where ``*`` is any free port.
            keys: who may connect; not needed for ipc, whose socket is its owner's alone.
            on_trouble: called with a line about an engine that was hung up on.

        Raises:
            TaskError: the address is none, or tcp without keys.
        """
        check_address(address, keys=keys is not None)
        self.address = address
        """Once it is entered: with the port that was chosen."""
        self._handlers = dict(handlers)
        self._keys = keys
        self._on_trouble = on_trouble
        self._dispatcher = Dispatcher()
        self._engines: dict[bytes, _Engine] = {}
        self._stack = contextlib.AsyncExitStack()
        self._done = 0

    @property
    def load(self) -> Load:
        """What it is doing now."""
        queues = [queue for engine in self._engines.values() for queue in engine.queues.values()]
        running, queued = sum(queue.running for queue in queues), sum(map(len, queues))
        return Load(len(self._engines), running, queued, self._done)

    async def __aenter__(self) -> Service:
        """Enter the models, and listen.

        Raises:
            TaskError: the address cannot be had.
        """
        async with contextlib.AsyncExitStack() as stack:
            for handler in self._handlers.values():
                await stack.enter_async_context(handler)
                _offer(handler)  # one that cannot be described is to fail here, not when a client comes
            context = zmq.asyncio.Context()
            stack.callback(context.destroy)
            if self._keys is not None:
                stack.callback(_authenticate(context, self._keys).stop)
            self._open(context)
            self._left = asyncio.Event()
            self._gate = Gate(self._socket, self._left.set, self._on_trouble)
            self._bind()
            if path := ipc_path(self.address):
                stack.callback(Path(path).unlink, missing_ok=True)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell every engine that its requests will not be answered, and close."""
        for engine in list(self._engines.values()):
            pending = list(engine.pending)
            self._drop(engine)
            for number in pending:
                self._tell(engine, protocol.failure(number, Unavailable("the broker service has ended")))
        self._socket.disable_monitor()
        self._socket.close(linger=int(_FAREWELL_SECONDS * 1000))
        await self._stack.aclose()

    async def serve(self) -> None:
        """Answer, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._gate.watch())
            group.create_task(self._probe())
            group.create_task(self._receive())

    def _open(self, context: zmq.asyncio.Context) -> None:
        self._socket = open_socket(context, zmq.ROUTER, self.address)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # who is gone is an error
        self._socket.setsockopt(zmq.SNDHWM, MAX_UNREAD)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, 5000)
        if self._keys is not None:
            self._socket.setsockopt(zmq.CURVE_SERVER, 1)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.pair.secret)
            self._socket.setsockopt_string(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
            # Without it, a client is let in where nobody answers for its key.
            self._socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def _bind(self) -> None:
        path = ipc_path(self.address)
        with private_socket(path) if path is not None else contextlib.nullcontext():
            try:
                self._socket.bind(self.address)
            except zmq.ZMQError as error:
                raise TaskError(f"cannot listen at {self.address}: {error.strerror}") from error
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    async def _receive(self) -> None:
        while True:
            route = (await receive(self._socket)).bytes
            frame = last = await receive(self._socket)
            descriptor = frame.get(zmq.SRCFD)
            assert isinstance(descriptor, int)
            self._gate.delivered(descriptor, len(frame))
            while last.more:
                last = await receive(self._socket)
                self._gate.delivered(descriptor, len(last))
            try:
                if frame.more:
                    raise RemoteProtocolError("a message of more than one frame")  # noqa: TRY301 - as one that is none
                self._handle(route, descriptor, frame.buffer)
            except RemoteProtocolError as error:
                self._hang_up(route, descriptor, error)

    def _handle(self, route: bytes, descriptor: int, payload: memoryview) -> None:
        """One message.

        Raises:
            RemoteProtocolError: whoever sent it should be hung up on.
        """
        engine = self._engines.get(route)
        match protocol.decode_from_engine(payload):
            case Hello(version):
                if engine is not None:
                    raise RemoteProtocolError("a second Hello")
                self._welcome(route, descriptor, version)
            case Ask() as ask if engine is not None:
                self._ask(engine, ask, protocol.cost(payload))
            case Cancel(number) if engine is not None:
                if number in engine.pending:
                    self._cancel(engine, [engine.pending[number]])
            case _:
                raise RemoteProtocolError("a request before Hello")

    def _welcome(self, route: bytes, descriptor: int, version: int) -> None:
        queues = {role: self._dispatcher.queue(handler) for role, handler in self._handlers.items()}
        engine = _Engine(route, descriptor, queues)
        full = len(self._engines) >= MAX_ENGINES
        if full or version != protocol.VERSION:
            self._tell(engine, Refused(protocol.VERSION, full))
            return
        self._engines[route] = engine
        self._tell(engine, Welcome({role: _offer(handler) for role, handler in self._handlers.items()}))

    def _ask(self, engine: _Engine, ask: Ask, cost: int) -> None:
        if ask.request in engine.pending or cost > engine.room:
            raise RemoteProtocolError("a number that is in use, or more requests at once than are allowed")
        queue = engine.queues.get(ask.role)
        if queue is None:
            self._tell(
                engine, protocol.failure(ask.request, Rejected("the service has no model of this role"))
            )
            return
        asked = _Asked(self, engine, ask, cost)
        engine.pending[ask.request] = asked
        engine.room -= cost
        queue.put([asked])

    def finish(self, engine: _Engine, asked: _Asked, result: Completion | Exception) -> None:
        """A request has its answer."""
        engine.forget(asked)
        self._done += 1
        self._send(engine, _reply(asked, result))

    def _cancel(self, engine: _Engine, requests: list[_Asked]) -> None:
        for asked in requests:
            engine.forget(asked)
        for queue in engine.queues.values():
            queue.cancel([asked for asked in requests if asked.queue is queue])

    def _tell(self, engine: _Engine, message: protocol.FromService) -> None:
        self._send(engine, protocol.encode(message))

    def _send(self, engine: _Engine, payload: bytes) -> None:
        try:
            if not self._reaches(engine.route, payload):
                self._drop(engine)
        except zmq.Again:
            unread = RemoteProtocolError("it does not read its answers")
            self._hang_up(engine.route, engine.descriptor, unread)

    def _reaches(self, route: bytes, payload: bytes) -> bool:
        """Send, and tell whether there is still somebody to send to.

        Raises:
            zmq.Again: there is, but with too much unread already.
        """
        try:
            send_now(self._socket, [route, payload])
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return False
            raise
        return True

    def _hang_up(self, route: bytes, descriptor: int, error: RemoteProtocolError) -> None:
        engine = self._engines.get(route)
        if engine is not None:
            self._drop(engine)
        # What is read may be left from a connection that has ended, and its descriptor be another's by now.
        with contextlib.suppress(zmq.Again):
            if not self._reaches(route, protocol.encode(Probe())):
                return
        self._on_trouble(f"hung up on an engine: {error}")
        self._gate.hang_up(descriptor)

    def _drop(self, engine: _Engine) -> None:
        """An engine is gone; its requests are cancelled."""
        if self._engines.pop(engine.route, None) is not None:
            self._cancel(engine, list(engine.pending.values()))

    async def _probe(self) -> None:
        """Find out who is gone: soon after a connection has ended, and now and then."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PROBE_SECONDS):
                    await self._left.wait()
            self._left.clear()
            for engine in list(self._engines.values()):
                self._tell(engine, Probe())


class _Asked(Request):
    """A request of an engine."""

    __slots__ = ("_engine", "_messages", "_service", "cost", "number")

    def __init__(self, service: Service, engine: _Engine, ask: Ask, cost: int) -> None:
        super().__init__()
        self._messages = [Message(role=role, content=content) for role, content in ask.messages]
        self.number = ask.request
        self.cost = cost
        self._service = service
        self._engine = engine

    def conversation(self) -> Sequence[Message]:
        """See ``Request.conversation``."""
        return self._messages

    def finish(self, answer: Completion | Exception) -> None:
        """See ``Request.finish``."""
        self._service.finish(self._engine, self, answer)


class _Admission:
    """What ``zmq.auth`` asks about each key; it does so again whenever a client connects."""

    def __init__(self, keys: ServerKeys) -> None:
        self._keys = keys

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether the client with this public key may connect."""
        return self._keys.admits(key)


def _authenticate(context: zmq.asyncio.Context, keys: ServerKeys) -> AsyncioAuthenticator:
    authenticator = AsyncioAuthenticator(context)
    authenticator.configure_curve_callback(_ZAP_DOMAIN, _Admission(keys))
    authenticator.start()
    return authenticator


def _offer(handler: ModelHandler) -> Offer:
    price = handler.price
    return Offer(
        model=replace_surrogates(handler.model),
        window=handler.window,
        max_tokens=handler.max_tokens,
        price=(price.input_usd, price.output_usd) if price else None,
        samples=handler.samples,
        base_url=_without_logins(handler.base_url),
        identity=_without_logins(handler.identity()),
        concurrency=2 * handler.max_concurrency,  # when one has ended, the next is here already
    )


def _without_logins(value: T) -> T:
    """Plain data whose URLs name no user and no password: those are the service's own."""
    return json.loads(_LOGIN.sub("://", json.dumps(value)))


def _reply(asked: _Asked, result: Completion | Exception) -> bytes:
    if isinstance(result, Exception):
        failed = protocol.failure(asked.number, result)
        return protocol.encode(msgspec.structs.replace(failed, message=_LOGIN.sub("://", failed.message)))
    answer = Answer(
        request=asked.number,
        text=replace_surrogates(result.text),
        input_tokens=result.usage.input_tokens,
        output_tokens=result.usage.output_tokens,
        calls=result.usage.calls,
        finish_reason=result.finish_reason,
        reasoning=replace_surrogates(result.reasoning),
        retries=result.retries,
        queued=result.queued + (asked.started or asked.queued) - asked.queued,
    )
    payload = protocol.encode(answer)
    if len(payload) <= protocol.MAX_BYTES:
        return payload
    too_large = Rejected(
        f"the answer has {len(payload)} bytes; the service sends at most {protocol.MAX_BYTES}"
    )
    return _reply(asked, too_large)
