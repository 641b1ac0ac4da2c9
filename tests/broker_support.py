"""A broker service in the test's own event loop, and clients of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.asyncio

from supdist.engine.service import (
    RemoteHandler,
    Service,
    make_client_keys,
    make_server_keys,
    read_server_keys,
)
from supdist.engine.service.keys import read_client_keys
from supdist.engine.service.protocol import (
    VERSION,
    FromService,
    Hello,
    Probe,
    Welcome,
    decode_from_service,
    encode,
)
from supdist.handlers import Completion, Message, ModelHandler


@dataclass(frozen=True)
class Place:
    """Where a service is, and the keys for it; none of them is there yet."""

    address: str
    keys: Path | None = None

    @property
    def client_keys(self) -> Path | None:
        return self.keys and self.keys / "clients" / "friend"


def ipc_place(folder: Path) -> Place:
    return Place(f"ipc://{folder}/broker")


def tcp_place(folder: Path) -> Place:
    """Any free port, with fresh keys."""
    keys = folder / "keys"
    make_server_keys(keys)
    make_client_keys(keys, "friend")
    return Place("tcp://127.0.0.1:*", keys)


@asynccontextmanager
async def serving(
    place: Place, handlers: Mapping[str, ModelHandler] | ModelHandler, trouble: Callable[[str], None] = print
) -> AsyncGenerator[Service]:
    """A service that serves; a failure of its own is the test's."""
    models = {"worker": handlers} if isinstance(handlers, ModelHandler) else handlers
    keys = read_server_keys(place.keys) if place.keys else None
    async with Service(models, place.address, keys=keys, on_trouble=trouble) as service:
        task = asyncio.create_task(service.serve())
        try:
            yield service
        finally:
            task.cancel()
            (ended,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(ended, asyncio.CancelledError), ended


def client_of(service: Service, place: Place, role: str = "worker", **options: float) -> RemoteHandler:
    return RemoteHandler(role, service.address, curve_keys=place.client_keys, **options)


class GatedHandler(ModelHandler):
    """Answers a conversation with its own last text, once the test has released that text."""

    def __init__(self, slots: int = 64) -> None:
        self.max_concurrency = slots
        self.arrived: list[str] = []
        self.cancelled: list[str] = []
        self.inside = 0
        self.most = 0
        self._released: dict[str, asyncio.Event] = {}

    async def chat(self, messages: Sequence[Message]) -> Completion:
        text = messages[-1]["content"]
        self.arrived.append(text)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self._released.setdefault(text, asyncio.Event()).wait()
        except asyncio.CancelledError:
            self.cancelled.append(text)
            raise
        finally:
            self.inside -= 1
        return Completion(text)

    def release(self, *texts: str) -> None:
        for text in texts:
            self._released.setdefault(text, asyncio.Event()).set()


class RawClient:
    """A DEALER with good keys that says what it likes."""

    def __init__(self, service: Service, place: Place) -> None:
        self._context = zmq.asyncio.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        if place.client_keys is not None:
            keys = read_client_keys(place.client_keys)
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.pair.public)
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, keys.pair.secret)
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server)
        self._monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.socket.connect(service.address)

    async def greet(self, version: int = VERSION) -> FromService:
        """Say Hello; what comes back."""
        await self.socket.send(encode(Hello(version)))
        return await self.next()

    async def next(self) -> FromService:
        """The next message that is no probe."""
        async with asyncio.timeout(10):
            while True:
                message = decode_from_service(await self.socket.recv())
                if not isinstance(message, Probe):
                    return message

    async def until_hung_up(self) -> None:
        async with asyncio.timeout(10):
            await self._monitor.recv_multipart()

    async def __aenter__(self) -> RawClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.socket.disable_monitor()
        self._context.destroy(linger=0)


async def greeted(client: RawClient) -> None:
    assert isinstance(await client.greet(), Welcome)
