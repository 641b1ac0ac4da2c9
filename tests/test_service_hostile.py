"""Authenticated clients that break the protocol lose their connection; other clients lose nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest
import zmq
import zmq.asyncio
from broker_support import GatedHandler, Place, RawClient, client_of, greeted, ipc_place, serving, tcp_place
from hypothesis import given, settings
from hypothesis import strategies as st
from support import eventually, user_messages

from supdist.engine.errors import RemoteProtocolError
from supdist.engine.service import RemoteHandler, Service, connection_limiter, protocol
from supdist.engine.service import service as service_module
from supdist.engine.service.protocol import (
    Cancel,
    ChatRequest,
    Failure,
    Hello,
    Probe,
    Refused,
    Welcome,
    decode_from_engine,
    decode_from_service,
    encode,
)
from supdist.handlers import Rejected, ScriptedHandler, Unavailable


def ask(number: int, text: str = "x", role: str = "worker") -> bytes:
    return encode(ChatRequest(number, role, [("user", text)]))


async def send(raw: RawClient, *frames: bytes) -> None:
    for frame in frames[:-1]:
        await raw.socket.send(frame, zmq.SNDMORE)
    await raw.socket.send(frames[-1])


Deed = Callable[[RawClient], Awaitable[object]]

DEEDS: dict[str, Deed] = {
    "no message": lambda raw: raw.socket.send(b"\xc1"),
    "nothing": lambda raw: raw.socket.send(b""),
    "a message of the service": lambda raw: raw.socket.send(encode(Probe())),
    "a request cut short": lambda raw: raw.socket.send(ask(1)[:-1]),
    "text that is none": lambda raw: raw.socket.send(ask(1, "abc").replace(b"abc", b"\xff\xfe\xfd")),
    "a field too many": lambda raw: raw.socket.send(b"\x93\x03\x01\x01"),
    "a role that is none": lambda raw: raw.socket.send(ask(1).replace(b"user", b"root")),
    "a number that is none": lambda raw: raw.socket.send(b"\x92\x03\xff"),
    "an array without its items": lambda raw: raw.socket.send(b"\xdd\xff\xff\xff\xff"),
    "very deep": lambda raw: raw.socket.send(b"\x91" * 100_000),
    "more messages than are allowed": lambda raw: raw.socket.send(
        encode(ChatRequest(1, "worker", [("user", "")] * 100_001))
    ),
    "two frames": lambda raw: send(raw, ask(1), b""),
    "many frames": lambda raw: send(raw, *[b""] * 5000),
    "a second Hello": lambda raw: raw.socket.send(encode(Hello(1))),
    "a number in use": lambda raw: raw.socket.send(ask(0)),
    "a frame that is too large": lambda raw: raw.socket.send(bytes(protocol.MAX_BYTES + 1)),
}


@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS.keys())
async def test_who_breaks_the_protocol_is_hung_up_on_and_the_others_go_on(place: Place, deed: Deed) -> None:
    model = GatedHandler()
    model.release("good")
    async with (
        serving(place, model) as service,
        client_of(service, place) as good,
        RawClient(service, place) as raw,
    ):
        await greeted(raw)
        await raw.socket.send(ask(0, "waits"))
        await eventually(lambda: model.arrived == ["waits"])
        await deed(raw)
        await raw.until_hung_up()
        await eventually(lambda: model.cancelled == ["waits"])
        assert service.load.engines == 1
        assert model.arrived == ["waits"], "nothing of it reached the model"
        assert (await good.chat(user_messages("good"))).text == "good"


async def test_a_request_before_hello_is_hung_up_on(place: Place) -> None:
    model = ScriptedHandler(["never"])
    async with serving(place, model) as service, RawClient(service, place) as raw:
        await raw.socket.send(ask(1))
        await raw.until_hung_up()
    assert model.calls == []


async def test_more_at_once_than_its_credit_is_hung_up_on(place: Place) -> None:
    most = protocol.CREDIT // protocol.LEAST_COST
    async with serving(place, GatedHandler(slots=1)) as service, RawClient(service, place) as raw:
        await greeted(raw)
        for number in range(most):
            await raw.socket.send(ask(number))
        await eventually(lambda: service.load.running + service.load.queued == most)
        await raw.socket.send(encode(Cancel(5)))
        await raw.socket.send(ask(most))
        await eventually(lambda: service.load.queued == most - 1)
        assert service.load.engines == 1
        await raw.socket.send(ask(most + 1))
        await raw.until_hung_up()
        await eventually(lambda: service.load == service_module.Load(0, 0, 0, 0))


async def test_what_is_not_known_is_no_offence(place: Place) -> None:
    async with serving(place, ScriptedHandler(["yes"])) as service, RawClient(service, place) as raw:
        await greeted(raw)
        await raw.socket.send(encode(Cancel(77)))
        await raw.socket.send(ask(1, role="king"))
        assert await raw.next() == Failure(1, "rejected", "the service has no model of this role", None, None)
        await raw.socket.send(ask(1))
        answer = await raw.next()
        assert isinstance(answer, protocol.ChatReply)
        assert answer.text == "yes"


async def test_a_message_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    """ZeroMQ keeps all frames of a message until its last has come."""
    place, trouble = tcp_place(tmp_path), list[str]()
    async with (
        serving(place, ScriptedHandler(lambda _: "fine"), trouble.append) as service,
        client_of(service, place) as good,
        RawClient(service, place) as raw,
    ):
        await greeted(raw)
        before = psutil.Process().memory_info().rss
        piece = zmq.Frame(bytes(1 << 20))  # one, sent again and again: the sender is this process, too
        for _ in range(8000):
            raw.socket.send(piece, zmq.SNDMORE, copy=False)
        raw.socket.send(b"")
        await raw.until_hung_up()
        await eventually(
            lambda: trouble == ["disconnected an engine: it sends too much, or a message without end"]
        )
        assert psutil.Process().memory_info().rss - before < 1 << 30, "an eighth of what was on its way"
        assert (await good.chat(user_messages("x"))).text == "fine"


async def test_who_does_not_read_its_answers_is_hung_up_on(tmp_path: Path) -> None:
    place, trouble = ipc_place(tmp_path), list[str]()
    model = ScriptedHandler(lambda _: "x" * 4096)
    async with serving(place, model, trouble.append) as service, RawClient(service, place) as raw:
        raw.socket.setsockopt(zmq.RCVHWM, 1)
        await greeted(raw)
        for number in range(10 * service_module.MAX_UNREAD):
            await raw.socket.send(ask(number))
            if number % 100 == 0:
                await eventually(lambda: len(model.calls) >= number or not service.load.engines)  # noqa: B023 - it is awaited
            if not service.load.engines:
                break
    assert trouble[0] == "disconnected an engine: it does not read its answers"


async def test_no_more_engines_than_are_allowed(tmp_path: Path) -> None:
    place = ipc_place(tmp_path)
    async with serving(place, ScriptedHandler(["x"])) as service:
        clients = [RawClient(service, place) for _ in range(service_module.MAX_ENGINES)]
        try:
            for client in clients:
                await greeted(client)
            with pytest.raises(Unavailable, match="takes no more clients"):
                await client_of(service, place).chat(user_messages("x"))
        finally:
            for client in clients:
                await client.__aexit__()
        await eventually(lambda: not service.load.engines)
        assert (await client_of(service, place).chat(user_messages("x"))).text == "x"


# --- versions -------------------------------------------------------------------------------------


async def test_an_engine_of_another_version_is_told_which_one_is_spoken(place: Place) -> None:
    async with serving(place, ScriptedHandler([])) as service, RawClient(service, place) as raw:
        assert await raw.greet(version=protocol.VERSION + 1) == Refused(protocol.VERSION, full=False)
        assert service.load.engines == 0


async def test_a_hello_of_a_later_version_may_say_more() -> None:
    later = encode(Hello(7))
    assert decode_from_engine(b"\x93" + later[1:] + b"\xa4more") == Hello(7)


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (encode(Refused(4, full=False)), Rejected, "uses protocol version 4, this engine 3"),
        (b"\x94\x15\x04\xc2\xa4more", Rejected, "uses protocol version 4, this engine 3"),
        (b"garbage", Unavailable, "broke the protocol"),
        (encode(Hello(1)), Unavailable, "broke the protocol"),
        (encode(Welcome({})), Rejected, "serves no worker; add it"),
    ],
)
async def test_a_service_that_says_something_else_is_an_error_of_its_own(
    tmp_path: Path, reply: bytes, error: type[Exception], words: str
) -> None:
    context = zmq.asyncio.Context()
    router = context.socket(zmq.ROUTER)
    try:
        router.bind(f"ipc://{tmp_path}/broker")
        call = asyncio.create_task(
            RemoteHandler("worker", f"ipc://{tmp_path}/broker").chat(user_messages("x"))
        )
        route, hello = await router.recv_multipart()
        assert decode_from_engine(hello) == Hello(protocol.VERSION)
        await router.send(route, zmq.SNDMORE)
        await router.send(reply)
        with pytest.raises(error, match=words):
            await call
    finally:
        context.destroy(linger=0)


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b"\x94\x02\x01\xa6worker" + tail))
def test_bytes_are_a_message_or_one_known_error(payload: bytes) -> None:
    for decode in (decode_from_engine, decode_from_service):
        try:
            message = decode(payload)
        except RemoteProtocolError:
            continue
        assert decode(encode(message)) == message


def test_size_is_looked_at_before_anything_else() -> None:
    with pytest.raises(RemoteProtocolError, match="bytes"):
        decode_from_engine(bytes(protocol.MAX_BYTES + 1))
    with pytest.raises(RemoteProtocolError, match="bytes"):
        decode_from_service(bytes(protocol.MAX_BYTES + 1))


async def test_connections_beyond_the_limit_are_closed(place: Place) -> None:
    """Those that say nothing, the oldest first: each holds a descriptor, and an engine must find room."""
    async with (
        serving(place, ScriptedHandler(lambda _: "fine")) as service,
        client_of(service, place) as good,
    ):
        assert (await good.chat(user_messages("x"))).text == "fine"
        with contextlib.ExitStack() as stack:
            callers = [
                stack.enter_context(stranger(service)) for _ in range(connection_limiter.MAX_CONNECTIONS)
            ]
            async with asyncio.timeout(4):  # after five seconds ZeroMQ itself closes what says nothing
                await hung_up(callers[0])
            assert (await good.chat(user_messages("x"))).text == "fine"
            async with asyncio.timeout(2), client_of(service, place) as late:
                assert (await late.chat(user_messages("x"))).text == "fine"


# --- peers that do not speak ZMTP 3 ---------------------------------------------------------------

SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
NULL = b"\x03\x00NULL" + bytes(16 + 1 + 31)
STRANGE_PEERS = {
    "ZMTP 1.0": b"\x01\x00\x06\x00hello",
    "ZMTP 1.0 with a signature": SIGNATURE + b"\x00\x05\x01\x00\x06\x00hello",
    "ZMTP 2.0": SIGNATURE + b"\x01\x05\x00\x00\x00\x05hello",
    "ZMTP 3.0 without READY": SIGNATURE + NULL + b"\x00\x05hello",
    "ZMTP 3.0, a REP": SIGNATURE + NULL + b"\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x03REP\x00\x05hello",
    "ZMTP 3.0, an endless command": SIGNATURE + NULL + b"\x06" + b"\x7f" + bytes(7) + b"x" * 4096,
    "a mechanism that is none": SIGNATURE + b"\x03\x00" + b"X" * 20 + bytes(32),
    "HTTP": b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(189),
    "zeros": bytes(64),
    "ones": b"\xff" * 64,
}


@pytest.mark.parametrize("data", STRANGE_PEERS.values(), ids=STRANGE_PEERS.keys())
async def test_a_peer_of_another_protocol_ends_alone(place: Place, data: bytes) -> None:
    """A message of ZMTP 1.0 or 2.0 has no descriptor to count it for; libzmq refuses such peers."""
    async with (
        serving(place, ScriptedHandler(lambda _: "fine")) as service,
        client_of(service, place) as good,
    ):
        assert (await good.chat(user_messages("x"))).text == "fine"
        with stranger(service) as caller:
            await asyncio.get_running_loop().sock_sendall(caller, data)
            async with asyncio.timeout(8):
                await hung_up(caller)
        assert service.load.engines == 1
        assert (await good.chat(user_messages("x"))).text == "fine"


@given(st.lists(st.sampled_from([*STRANGE_PEERS.values(), b"\x00", b"\xff"]) | st.binary(max_size=80)))
@settings(max_examples=10, deadline=None)
def test_a_service_outlives_any_bytes(parts: list[bytes]) -> None:
    async def attack() -> None:
        with tempfile.TemporaryDirectory() as folder:
            place = ipc_place(Path(folder))
            async with serving(place, ScriptedHandler(lambda _: "fine")) as service:
                for tail in parts:
                    with stranger(service) as caller, contextlib.suppress(ConnectionError):
                        await asyncio.get_running_loop().sock_sendall(caller, SIGNATURE[: len(tail)] + tail)
                async with client_of(service, place) as good:
                    assert (await good.chat(user_messages("x"))).text == "fine"

    asyncio.run(attack())


def stranger(service: Service) -> socket.socket:
    """A connection without ZeroMQ."""
    scheme, _, rest = service.address.partition("://")
    if scheme == "ipc":
        caller = socket.socket(socket.AF_UNIX)
        caller.connect(rest)
    else:
        host, _, port = rest.rpartition(":")
        caller = socket.create_connection((host, int(port)))
    caller.setblocking(False)
    return caller


async def hung_up(caller: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while await asyncio.get_running_loop().sock_recv(caller, 4096):
            pass
