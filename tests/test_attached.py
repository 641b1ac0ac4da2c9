"""A daemon's multiplexed stream, however it is cut."""

from __future__ import annotations

import socket
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supdist.engine.jail.attached import AttachedStream

PIECES = st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=12)


@pytest.fixture
def ends() -> Generator[tuple[socket.socket, AttachedStream]]:
    daemon, ours = socket.socketpair()
    stream = AttachedStream(ours)
    stream.setblocking(False)
    yield daemon, stream
    daemon.close()
    stream.close()


def piece(number: int, data: bytes) -> bytes:
    return bytes([number, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


@given(PIECES, st.lists(st.integers(1, 30), max_size=30))
def test_stdout_comes_whole_and_nothing_else_does(pieces: list[tuple[int, bytes]], cuts: list[int]) -> None:
    sent = b"".join(piece(number, data) for number, data in pieces)
    daemon, ours = socket.socketpair()
    stream = AttachedStream(ours)
    stream.setblocking(False)
    received = b""
    with daemon:
        for size in [*cuts, len(sent)]:
            daemon.sendall(sent[:size])
            sent = sent[size:]
            received += drained(stream)
    assert stream.recv(100) == b""
    stream.close()
    assert received == b"".join(data for number, data in pieces if number == 1)


def drained(stream: AttachedStream) -> bytes:
    received = b""
    try:
        while data := stream.recv(7):
            received += data
    except BlockingIOError:
        pass
    return received


def test_what_is_sent_goes_as_it_is(ends: tuple[socket.socket, AttachedStream]) -> None:
    daemon, stream = ends
    assert stream.send(b"frame") == 5
    assert daemon.recv(100) == b"frame"


def test_a_header_alone_is_nothing_yet(ends: tuple[socket.socket, AttachedStream]) -> None:
    daemon, stream = ends
    daemon.sendall(piece(1, b"x")[:8])
    with pytest.raises(BlockingIOError):
        stream.recv(100)
    daemon.sendall(b"x")
    assert stream.recv(100) == b"x"
