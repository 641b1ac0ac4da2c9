"""What shims and the engine say to each other, each of them to libzmq, and what neither takes."""

from __future__ import annotations

import socket
import struct
from collections.abc import Generator
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from supdist.engine.jail.message_stream import MessageStream
from supdist.engine.jail.zmtp import ZmtpConnection
from supdist.sandbox_image.protocol import Violation

LIMIT = 1 << 20
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER"
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL".ljust(55, b"\0")
SIZES = [0, 1, 255, 256, 70_000, LIMIT]


@pytest.fixture
def router(tmp_path: Path) -> Generator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.RCVTIMEO, 5000),
            (zmq.SNDTIMEO, 5000),
            (zmq.ROUTER_MANDATORY, 1),
        ):
            router.setsockopt(option, value)
        router.bind(f"ipc://{tmp_path}/engine")
        yield router


def connect(path: Path, name: bytes) -> tuple[socket.socket, ZmtpConnection]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(5)
    sock.connect(f"{path}/engine")
    dealer = ZmtpConnection(b"DEALER", LIMIT, name)
    sock.sendall(dealer.handshake)
    while not dealer.is_ready:
        assert dealer.feed(sock.recv(7)) == []
    return sock, dealer


def test_libzmqs_router_takes_what_a_shim_says_and_is_understood(
    router: zmq.Socket[bytes], tmp_path: Path
) -> None:
    sock, dealer = connect(tmp_path, b"one")
    other, other_dealer = connect(tmp_path, b"two")
    with sock, other:
        payloads = [bytes([size % 251]) * size for size in SIZES]
        for payload in payloads:
            sock.sendall(dealer.frame(payload))
        assert [router.recv_multipart() for _ in payloads] == [[b"one", payload] for payload in payloads]
        for payload in payloads:
            router.send_multipart([b"one", payload])
        router.send_multipart([b"two", b"for the other"])
        heard: list[bytes] = []
        while len(heard) < len(payloads):
            heard += dealer.feed(sock.recv(LIMIT))
        assert heard == payloads
        assert other_dealer.feed(other.recv(LIMIT)) == [b"for the other"]


@given(st.lists(st.binary(max_size=600), max_size=8), st.integers(1, 700))
def test_messages_come_whole_however_their_bytes_arrive(payloads: list[bytes], piece: int) -> None:
    dealer, heard = ZmtpConnection(b"DEALER", LIMIT), list[bytes]()
    stream = GREETING + READY + b"".join(map(dealer.frame, payloads))
    for start in range(0, len(stream), piece):
        heard += dealer.feed(stream[start : start + piece])
    assert dealer.is_ready
    assert heard == payloads


@given(st.lists(st.integers(0, 3000), max_size=6), st.integers(1, 4000))
def test_large_messages_come_whole_and_in_their_order(sizes: list[int], piece: int) -> None:
    patch = pytest.MonkeyPatch()
    with patch.context() as large:
        large.setattr("supdist.engine.jail.zmtp._LARGE_BYTES", 1000)
        dealer, heard = ZmtpConnection(b"DEALER", LIMIT), list[bytes]()
        payloads = [bytes([number]) * size for number, size in enumerate(sizes)]
        stream = GREETING + READY + b"".join(map(dealer.frame, payloads))
        for start in range(0, len(stream), piece):
            heard += dealer.feed(stream[start : start + piece])
    assert heard == payloads


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request".ljust(64),
        GREETING.replace(b"\x7f\x03", b"\x7f\x01"),
        GREETING.replace(b"NULL", b"PLAIN"),
        GREETING + READY.replace(b"ROUTER", b"DEALER"),
        GREETING + READY[:-7] + b"\xff" + READY[-6:],
        GREETING + b"\x00\x01x",
        GREETING + READY + b"\x01\x01x",
        GREETING + READY + struct.pack(">BQ", 2, LIMIT + 1),
    ],
    ids=["http", "old", "mechanism", "kind", "property", "early", "frames", "large"],
)
def test_what_no_engine_says_ends_it(said: bytes) -> None:
    with pytest.raises(Violation):
        ZmtpConnection(b"DEALER", LIMIT).feed(said)


def test_what_waits_is_written_when_there_is_room_and_given_up_in_time() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        lane = MessageStream(ours, ZmtpConnection(b"DEALER", LIMIT))
        payload = bytes(LIMIT)
        lane.send(payload)
        lane.send(b"last")
        assert (len(lane), lane.unsent_bytes > LIMIT // 2) == (2, True)
        lane.drain(0.01)
        assert len(lane) == 2, "nobody reads"
        heard = b""
        while lane.unsent_bytes:
            heard += theirs.recv(LIMIT)
            lane.flush()
        theirs.setblocking(False)
        heard += theirs.recv(LIMIT)
        assert heard[-4:] == b"last"
        assert len(heard) == LIMIT + 9 + 4 + 2
        theirs.close()
        lane.send(b"to nobody")
        assert lane.unsent_bytes == 0
