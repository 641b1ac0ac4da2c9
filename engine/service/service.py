"""The model server: the models of one machine for the engines of others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
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
from .connection_limiter import ConnectionLimiter
from .keys import ServerKeys
from .protocol import Cancel, ChatReply, ChatRequest, Hello, Offer, Probe, Rates, Refused, Used, Welcome
from .sockets import open_socket, receive_frame, send_now

T = TypeVar("T")

MAX_ENGINES = 256
# Messages that an engine may leave unread.
MAX_UNREAD = 2048

_PROBE_SECONDS = 1.0
_CLOSE_SECONDS = 2.0
_ZAP_DOMAIN = "supdist"
_LOGIN = re.compile(r"://[^/@\s\"]+@")


@dataclass(frozen=True, slots=True)
class Load:
    """Connected engines, and requests by state."""

    engines: int
    running: int
    queued: int
    done: int


@dataclass(frozen=True, slots=True)
class _Listener:
    socket: zmq.asyncio.Socket
    limiter: ConnectionLimiter
    ended: asyncio.Event


@dataclass(eq=False, slots=True)
class _EngineSession:
    route: bytes
    descriptor: int
    queues: dict[str, RequestQueue]
    pending: dict[int, _EngineRequest] = field(default_factory=dict[int, "_EngineRequest"])
    credit: int = protocol.CREDIT

    def remove(self, request: _EngineRequest) -> None:
        del self.pending[request.number]
        self.credit += request.cost


# It knows requests only: budgets, caches and logs belong to the engines. Each engine has its own queue for
# each model, so that the flood of one does not delay another.
class Service:
    """Serves models at an address while entered and ``serve`` runs.

    Attributes:
        address: has the chosen port once entered.
    """

    def __init__(
        self,
        handlers: Mapping[str, ModelHandler],
        address: str,
        *,
        keys: ServerKeys | None = None,
        on_trouble: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Open nothing yet.

        Args:
            handlers: by role.
            address: ``ipc://PATH``, or ``tcp://HOST:PORT``; ``*`` is any free port.
            keys: tcp needs them.
            on_trouble: called with a line about each disconnected engine.

        Raises:
            TaskError: the address cannot be used.
        """
        check_address(address, keys=keys is not None)
        self.address = address
        self._handlers = dict(handlers)
        self._keys = keys
        self._on_trouble = on_trouble
        self._dispatcher = Dispatcher()
        self._engines: dict[bytes, _EngineSession] = {}
        self._stack = contextlib.AsyncExitStack()
        self._listener: _Listener | None = None
        self._done = 0

    @property
    def load(self) -> Load:
        """The current load."""
        queues = [queue for engine in self._engines.values() for queue in engine.queues.values()]
        running, queued = sum(queue.running for queue in queues), sum(map(len, queues))
        return Load(len(self._engines), running, queued, self._done)

    async def __aenter__(self) -> Service:
        """Enter the models and listen.

        Raises:
            TaskError: the address cannot be used.
        """
        async with contextlib.AsyncExitStack() as stack:
            for handler in self._handlers.values():
                await stack.enter_async_context(handler)
                # A handler without a valid offer must fail now, not when an engine connects.
                _offer(handler)
            context = zmq.asyncio.Context()
            stack.callback(context.destroy)
            if self._keys is not None:
                stack.callback(_authenticate(context, self._keys).stop)
            ended = asyncio.Event()
            opened = self._open(context)
            limiter = ConnectionLimiter(opened, ended.set, self._on_trouble)
            self._listener = _Listener(opened, limiter, ended)
            self._bind(opened)
            if path := ipc_path(self.address):
                stack.callback(Path(path).unlink, missing_ok=True)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Fail the requests of every engine, and close."""
        for engine in list(self._engines.values()):
            pending = list(engine.pending)
            self._end_session(engine)
            for number in pending:
                self._send_message(
                    engine, protocol.failure(number, Unavailable("the broker service has ended"))
                )
        self._open_listener.socket.disable_monitor()
        self._open_listener.socket.close(linger=int(_CLOSE_SECONDS * 1000))
        await self._stack.aclose()

    async def serve(self) -> None:
        """Answer until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._open_listener.limiter.watch())
            group.create_task(self._probe())
            group.create_task(self._receive())

    @property
    def _open_listener(self) -> _Listener:
        assert self._listener is not None, "the server is entered"
        return self._listener

    def _open(self, context: zmq.asyncio.Context) -> zmq.asyncio.Socket:
        opened = open_socket(context, zmq.ROUTER, self.address)
        # A send to an engine that is gone must fail.
        opened.setsockopt(zmq.ROUTER_MANDATORY, 1)
        opened.setsockopt(zmq.SNDHWM, MAX_UNREAD)
        opened.setsockopt(zmq.HANDSHAKE_IVL, 5000)
        # With a domain, libzmq refuses ZMTP 1.0 and 2.0. Their messages have no SRCFD: asking for it raises
        # EINVAL. Without keys no authenticator runs, and nothing else depends on the domain.
        opened.setsockopt_string(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
        if self._keys is not None:
            opened.setsockopt(zmq.CURVE_SERVER, 1)
            opened.setsockopt(zmq.CURVE_SECRETKEY, self._keys.pair.secret)
            # Without it, libzmq accepts every key while no authenticator runs.
            opened.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        return opened

    def _bind(self, opened: zmq.asyncio.Socket) -> None:
        path = ipc_path(self.address)
        with private_socket(path) if path is not None else contextlib.nullcontext():
            try:
                opened.bind(self.address)
            except zmq.ZMQError as error:
                raise TaskError(f"cannot listen at {self.address}: {error.strerror}") from error
        self.address = opened.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    async def _receive(self) -> None:
        while True:
            route = (await receive_frame(self._open_listener.socket)).bytes
            frame = last = await receive_frame(self._open_listener.socket)
            descriptor = frame.get(zmq.SRCFD)
            assert isinstance(descriptor, int)
            self._open_listener.limiter.count_frame(descriptor, len(frame))
            while last.more:
                last = await receive_frame(self._open_listener.socket)
                self._open_listener.limiter.count_frame(descriptor, len(last))
            try:
                if frame.more:
                    raise RemoteProtocolError("a message of more than one frame")  # noqa: TRY301 - as one that is none
                self._handle(route, descriptor, frame.buffer)
            except RemoteProtocolError as error:
                self._disconnect(route, descriptor, error)

    # An error disconnects the sender.
    def _handle(self, route: bytes, descriptor: int, payload: memoryview) -> None:
        engine = self._engines.get(route)
        match protocol.decode_from_engine(payload):
            case Hello(version):
                if engine is not None:
                    raise RemoteProtocolError("a second Hello")
                self._welcome(route, descriptor, version)
            case ChatRequest() as chat_request if engine is not None:
                self._queue_request(engine, chat_request, protocol.cost(payload))
            case Cancel(number) if engine is not None:
                if number in engine.pending:
                    self._cancel(engine, [engine.pending[number]])
            case _:
                raise RemoteProtocolError("a request before Hello")

    def _welcome(self, route: bytes, descriptor: int, version: int) -> None:
        queues = {role: self._dispatcher.queue(handler) for role, handler in self._handlers.items()}
        engine = _EngineSession(route, descriptor, queues)
        full = len(self._engines) >= MAX_ENGINES
        if full or version != protocol.VERSION:
            self._send_message(engine, Refused(protocol.VERSION, full))
            return
        self._engines[route] = engine
        self._send_message(
            engine, Welcome({role: _offer(handler) for role, handler in self._handlers.items()})
        )

    def _queue_request(self, engine: _EngineSession, chat_request: ChatRequest, cost: int) -> None:
        if chat_request.request in engine.pending or cost > engine.credit:
            raise RemoteProtocolError("a number in use, or more requests at once than credit allows")
        queue = engine.queues.get(chat_request.role)
        if queue is None:
            self._send_message(
                engine,
                protocol.failure(chat_request.request, Rejected("the service has no model of this role")),
            )
            return
        request = _EngineRequest(self, engine, chat_request, cost)
        engine.pending[chat_request.request] = request
        engine.credit -= cost
        queue.put([request])

    def finish(self, engine: _EngineSession, request: _EngineRequest, result: Completion | Exception) -> None:
        """Send the answer to a request."""
        engine.remove(request)
        self._done += 1
        self._send(engine, _reply(request, result))

    def _cancel(self, engine: _EngineSession, requests: list[_EngineRequest]) -> None:
        for request in requests:
            engine.remove(request)
        for queue in engine.queues.values():
            queue.cancel([request for request in requests if request.queue is queue])

    def _send_message(self, engine: _EngineSession, message: protocol.FromService) -> None:
        self._send(engine, protocol.encode(message))

    def _send(self, engine: _EngineSession, payload: bytes) -> None:
        try:
            if not self._try_send(engine.route, payload):
                self._end_session(engine)
        except zmq.Again:
            unread = RemoteProtocolError("it does not read its answers")
            self._disconnect(engine.route, engine.descriptor, unread)

    def _try_send(self, route: bytes, payload: bytes) -> bool:
        try:
            send_now(self._open_listener.socket, [route, payload])
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return False
            raise
        return True

    def _disconnect(self, route: bytes, descriptor: int, error: RemoteProtocolError) -> None:
        engine = self._engines.get(route)
        if engine is not None:
            self._end_session(engine)
        # The connection may have ended, and its descriptor may be another's by now.
        with contextlib.suppress(zmq.Again):
            if not self._try_send(route, protocol.encode(Probe())):
                return
        self._on_trouble(f"disconnected an engine: {error}")
        self._open_listener.limiter.disconnect(descriptor)

    def _end_session(self, engine: _EngineSession) -> None:
        if self._engines.pop(engine.route, None) is not None:
            self._cancel(engine, list(engine.pending.values()))

    # Finds engines that are gone, soon after a connection ends and regularly.
    async def _probe(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PROBE_SECONDS):
                    await self._open_listener.ended.wait()
            self._open_listener.ended.clear()
            for engine in list(self._engines.values()):
                self._send_message(engine, Probe())


class _EngineRequest(Request):
    __slots__ = ("_engine", "_messages", "_service", "cost", "number")

    def __init__(
        self, service: Service, engine: _EngineSession, chat_request: ChatRequest, cost: int
    ) -> None:
        super().__init__()
        self._messages = [Message(role=role, content=content) for role, content in chat_request.messages]
        self.number = chat_request.request
        self.cost = cost
        self._service = service
        self._engine = engine

    def conversation(self) -> Sequence[Message]:
        return self._messages

    def finish(self, answer: Completion | Exception) -> None:
        self._service.finish(self._engine, self, answer)


class _AccessPolicy:
    """Decides for ``zmq.auth`` which client keys may connect."""

    def __init__(self, keys: ServerKeys) -> None:
        self._keys = keys

    def callback(self, domain: str, key: bytes) -> bool:
        return self._keys.is_authorized(key)


def _authenticate(context: zmq.asyncio.Context, keys: ServerKeys) -> AsyncioAuthenticator:
    authenticator = AsyncioAuthenticator(context)
    authenticator.configure_curve_callback(_ZAP_DOMAIN, _AccessPolicy(keys))
    authenticator.start()
    return authenticator


def _offer(handler: ModelHandler) -> Offer:
    price = handler.price
    return Offer(
        model=replace_surrogates(handler.model),
        window=handler.window,
        max_tokens=handler.max_tokens,
        price=Rates(*astuple(price)) if price else None,
        samples=handler.samples,
        base_url=_without_logins(handler.base_url),
        identity=_without_logins(handler.identity()),
        # Twice, so that the next request waits here when one ends.
        concurrency=2 * handler.max_concurrency,
    )


# URLs may hold a user and a password.
def _without_logins(value: T) -> T:
    return json.loads(_LOGIN.sub("://", json.dumps(value)))


def _reply(request: _EngineRequest, result: Completion | Exception) -> bytes:
    if isinstance(result, Exception):
        failed = protocol.failure(request.number, result)
        return protocol.encode(msgspec.structs.replace(failed, message=_LOGIN.sub("://", failed.message)))
    answer = ChatReply(
        request=request.number,
        text=replace_surrogates(result.text),
        usage=Used(*astuple(result.usage)),
        finish_reason=result.finish_reason,
        reasoning=replace_surrogates(result.reasoning),
        retries=result.retries,
        queued=result.queued + (request.started or request.queued) - request.queued,
    )
    payload = protocol.encode(answer)
    if len(payload) <= protocol.MAX_BYTES:
        return payload
    too_large = Rejected(
        f"the answer has {len(payload)} bytes; the service sends at most {protocol.MAX_BYTES}"
    )
    return _reply(request, too_large)
