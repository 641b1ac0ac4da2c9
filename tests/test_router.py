"""The engine's ROUTER, with DEALERs of libzmq and with sockets that say what they like."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from supdist.engine.jail.zmtp import ZmtpConnection
from supdist.engine.sandbox.router import Router

SIZES = [0, 1, 255, 256, 70_000, 5 << 20]
GREETING = ZmtpConnection(b"DEALER", 1).handshake[:64]


class Engine:
    """A router, and what it told. Whoever sets ``on_message`` is called with each."""

    def __init__(self, path: Path) -> None:
        self.path = f"{path}/engine"
        self.told: asyncio.Queue[tuple[bytes, bytes | None]] = asyncio.Queue()
        self.on_message: Callable[[bytes], Coroutine[object, object, None] | None] = lambda _: None
        self.router = Router(self._hear, lambda name: self.told.put_nowait((name, None)), set())
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(1024)
        asyncio.get_running_loop().add_reader(
            self._listener, lambda: self.router.add(self._listener.accept()[0])
        )

    def _hear(self, name: bytes, payload: bytes) -> Coroutine[object, object, None] | None:
        self.told.put_nowait((name, payload))
        return self.on_message(payload)

    async def next(self) -> tuple[bytes, bytes | None]:
        """What it tells next; a peer that is gone has None for a message."""
        async with asyncio.timeout(10):
            return await self.told.get()

    def close(self) -> None:
        """Close the router, and the socket that takes peers for it."""
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        self.router.close()

    def dial(self) -> socket.socket:
        """A socket that has connected, and said nothing."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(self.path)
        sock.setblocking(False)
        return sock

    async def peer(self, name: bytes) -> tuple[socket.socket, ZmtpConnection]:
        """One that has shaken hands."""
        sock, peer = self.dial(), ZmtpConnection(b"DEALER", 64 << 20, name)
        sock.send(peer.handshake)
        while not peer.is_ready:
            peer.feed(await received(sock))
        return sock, peer


async def received(sock: socket.socket) -> bytes:
    """Bytes, or none at its end."""
    async with asyncio.timeout(10):
        return await asyncio.get_running_loop().sock_recv(sock, 1 << 20)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncGenerator[Engine]:
    engine = Engine(tmp_path)
    yield engine
    engine.close()


@contextmanager
def dealer(engine: Engine, name: bytes) -> Generator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        for option, value in ((zmq.LINGER, 5000), (zmq.RCVTIMEO, 10_000), (zmq.ROUTING_ID, name)):
            dealer.setsockopt(option, value)
        dealer.connect(f"ipc://{engine.path}")
        yield dealer


async def test_libzmqs_dealers_are_heard_and_answered_each_by_its_name(engine: Engine) -> None:
    payloads = [bytes([size % 251]) * size for size in SIZES]

    def talk(name: bytes) -> list[bytes]:
        with dealer(engine, name) as sock:
            for payload in payloads:
                sock.send(payload)
            return [sock.recv() for _ in payloads]

    talking = [asyncio.create_task(asyncio.to_thread(talk, name)) for name in (b"one", b"two")]
    heard: dict[bytes, list[bytes | None]] = {b"one": [], b"two": []}
    while sum(len(messages) for messages in heard.values()) < 2 * (len(SIZES) + 1):
        name, payload = await engine.next()
        heard[name].append(payload)
        if payload is not None:
            engine.router.send(name, name + payload)
    assert heard == {name: [*payloads, None] for name in heard}
    for name, task in zip(heard, talking, strict=True):
        assert await task == [name + payload for payload in payloads]


async def test_to_those_who_are_gone_or_never_came_nothing_is_sent(engine: Engine) -> None:
    engine.router.send(b"nobody", b"x")
    sock, peer = await engine.peer(b"one")
    sock.send(peer.frame(b"last words"))
    sock.close()
    assert [await engine.next(), await engine.next()] == [(b"one", b"last words"), (b"one", None)]
    engine.router.send(b"one", b"x")
    with (await engine.peer(b"one"))[0]:  # the name is free again
        pass


async def test_a_peer_that_does_not_read_delays_none_and_loses_nothing(engine: Engine) -> None:
    (slow, slows), (quick, quicks) = await engine.peer(b"slow"), await engine.peer(b"quick")
    with slow, quick:
        for _ in range(20):
            engine.router.send(b"slow", bytes(1 << 20))
        engine.router.send(b"quick", b"at once")
        assert quicks.feed(await received(quick)) == [b"at once"]
        heard: list[bytes] = []
        while len(heard) < 20:
            heard += slows.feed(await received(slow))
        assert heard == [bytes(1 << 20)] * 20


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n".ljust(64),
        GREETING.replace(b"NULL", b"PLAIN"),
        ZmtpConnection(b"ROUTER", 1, b"a router").handshake,
        ZmtpConnection(b"DEALER", 1).handshake,
        ZmtpConnection(b"DEALER", 1, b"taken").handshake,
        GREETING + b"\x00\x01x",
        ZmtpConnection(b"DEALER", 1, b"new").handshake + b"\x01\x01x",
        ZmtpConnection(b"DEALER", 1, b"new").handshake + b"\x02" + (65 << 20).to_bytes(8, "big"),
    ],
    ids=["http", "mechanism", "kind", "nameless", "taken", "early", "frames", "large"],
)
async def test_who_is_no_shim_is_hung_up_on_and_others_stay(engine: Engine, said: bytes) -> None:
    ours, peer = await engine.peer(b"taken")
    with ours, engine.dial() as theirs:
        theirs.send(said)
        try:
            while await received(theirs):
                pass
        except ConnectionResetError:
            pass
        ours.send(peer.frame(b"still here"))
        assert await engine.next() == (b"taken", b"still here")
        assert engine.told.empty()


async def test_a_flood_is_heard_in_turns_with_what_others_say_between(engine: Engine) -> None:
    loop, begun, over = asyncio.get_running_loop(), [0], False

    def turn() -> None:
        begun.append(0)
        if not over:
            loop.call_soon(turn)

    def count(_: bytes) -> None:
        begun[-1] += 1

    engine.on_message = count
    (flooding, peer), (quiet, quiets) = await engine.peer(b"flood"), await engine.peer(b"quiet")
    with flooding, quiet:
        frames = b"".join(peer.frame(b"%d" % number) for number in range(5000))
        sending = asyncio.create_task(loop.sock_sendall(flooding, frames))
        quiet.send(quiets.frame(b"a word"))
        turn()
        heard = [await engine.next() for _ in range(5001)]
        over = True
        await sending
    assert max(begun) <= 16
    assert [payload for name, payload in heard if name == b"flood"] == [
        b"%d" % number for number in range(5000)
    ]
    assert heard.index((b"quiet", b"a word")) < 200


async def test_what_a_receiver_raises_loses_no_message(engine: Engine) -> None:
    raised: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context["exception"]))

    def fail(payload: bytes) -> None:
        if int(payload) % 2:
            raise LookupError

    engine.on_message = fail
    sock, peer = await engine.peer(b"one")
    with sock:
        frames = b"".join(peer.frame(b"%0200d" % number) for number in range(1, 1001))  # of several reads
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(sock, frames))
        heard = [await engine.next() for _ in range(1000)]
        assert heard == [(b"one", b"%0200d" % number) for number in range(1, 1001)]
        await sending
    assert await engine.next() == (b"one", None)
    assert [type(error) for error in raised] == [LookupError] * 500
    assert engine.told.empty()


async def test_a_peer_waits_for_the_work_on_its_message_and_others_do_not(engine: Engine) -> None:
    may_end = asyncio.Event()

    async def work() -> None:
        await may_end.wait()
        engine.told.put_nowait((b"", b"worked"))

    engine.on_message = lambda payload: work() if payload == b"long" else None
    one, peer = await engine.peer(b"one")
    two, other = await engine.peer(b"two")
    with one, two:
        one.send(peer.frame(b"long") + peer.frame(b"next"))
        assert await engine.next() == (b"one", b"long")
        two.send(other.frame(b"x"))
        assert await engine.next() == (b"two", b"x")
        one.send(peer.frame(b"last"))
        may_end.set()
        told = [await engine.next() for _ in range(3)]
        assert told == [(b"", b"worked"), (b"one", b"next"), (b"one", b"last")]


async def test_work_that_fails_is_reported_and_the_peer_goes_on(engine: Engine) -> None:
    failures: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: failures.append(told["exception"]))

    async def fail() -> None:
        raise ValueError("work")

    engine.on_message = lambda payload: fail() if payload == b"long" else None
    sock, peer = await engine.peer(b"one")
    with sock:
        sock.send(peer.frame(b"long") + peer.frame(b"next"))
        assert [await engine.next(), await engine.next()] == [(b"one", b"long"), (b"one", b"next")]
    assert list(map(str, failures)) == ["work"]


async def test_no_work_is_left_of_a_router_that_is_closed(tmp_path: Path) -> None:
    engine, began, ended = Engine(tmp_path), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    engine.on_message = lambda _: work()
    sock, peer = await engine.peer(b"one")
    with sock:
        sock.send(peer.frame(b"long"))
        await began.wait()
        engine.close()
        async with asyncio.timeout(10):
            await ended.wait()
