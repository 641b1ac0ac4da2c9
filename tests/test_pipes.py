"""The pipes of cells' fd 1 and 2: who reads them when, and what becomes of those that outlive their cell."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Generator
from contextlib import suppress

import pytest

from supdist.engine.jail.message_stream import MessageStream
from supdist.engine.jail.output import PipeReader
from supdist.sandbox_image import protocol
from supdist.sandbox_image.guest.pipes import OldPipes, Pipes


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def is_closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


def test_a_pipe_is_read_in_pieces_and_gone_at_its_end() -> None:
    pipes = Pipes()
    out, err = pipes.make()
    first, second = pipes.streams
    assert pipes.read(first) is None
    os.write(out, b"x" * 60_000)
    os.write(err, b"oops")
    assert [pipes.read(first), pipes.read(first), pipes.read(second)] == [b"x" * 60_000, None, b"oops"]
    os.close(out)
    assert pipes.read(first) == b""
    assert is_closed(first)
    assert pipes.streams == {second: 2}
    assert pipes.retire() == [second]
    assert not pipes.streams
    close_all([err, second])


def test_a_flood_does_not_hold_the_end_back_and_finds_more_room() -> None:
    pipes = Pipes()
    out, err = pipes.make()
    stop = threading.Event()
    os.write(out, bytes(1 << 16))

    def flood() -> None:
        with suppress(BrokenPipeError):
            while not stop.is_set():
                os.write(out, bytes(1 << 16))

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        drained = list(pipes.drain())
        assert 0 < sum(len(data) for _, data in drained) <= 5 * protocol.READ_BYTES
        assert {stream for stream, _ in drained} == {1}
    finally:
        stop.set()
        close_all(pipes.retire())
        flooding.join(10)
        close_all([out, err])


def test_of_many_old_pipes_the_oldest_are_closed() -> None:
    old, ends = OldPipes(), [os.pipe() for _ in range(20)]
    for reader, _ in ends:
        os.set_blocking(reader, False)
    closed = [old.add(reader) for reader, _ in ends]
    readers = [reader for reader, _ in ends]
    assert closed == [None] * 16 + readers[:4]
    with pytest.raises(BrokenPipeError):
        os.write(ends[0][1], b"x")
    os.write(ends[19][1], b"x")
    assert not old.discard(readers[19])
    close_all([writer for _, writer in ends])
    assert all(old.discard(reader) and reader not in old for reader in readers[4:])


@pytest.fixture
def init() -> Generator[tuple[MessageStream, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(5)
    lane = MessageStream(ours, protocol.FrameBuffer(1 << 16))
    with theirs:
        yield lane, theirs
    lane.close()


def next_cell(output: PipeReader, mine: list[int], now: float) -> list[int]:
    """What the repl does: it puts the new pipes in the place of its own."""
    writers = output.begin_cell(now)
    close_all(mine)
    return writers


def test_pipes_that_only_the_repl_had_are_closed_without_a_word(
    init: tuple[MessageStream, socket.socket],
) -> None:
    lane, theirs = init
    output = PipeReader(os.geteuid(), lane)
    mine = output.begin_cell(0.0)
    assert output.release_at is None
    last = output.descriptors(9.0)
    os.write(mine[0], b"one")
    assert list(output.drain()) == [(1, b"one")]
    output.end_cell()
    assert output.descriptors(9.0) == last, "something may still write there"
    mine = next_cell(output, mine, 5.0)
    assert not set(output.descriptors(9.0)) & set(last)
    assert output.release_at is not None
    output.release_if_due(output.release_at - 0.001)
    assert not is_closed(last[0])
    output.release_if_due(output.release_at)
    assert all(map(is_closed, last))
    assert output.release_at is None
    output.end_cell()
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    close_all([*mine, *output.descriptors(9.0)])


def test_pipes_that_something_else_has_go_to_init(init: tuple[MessageStream, socket.socket]) -> None:
    lane, theirs = init
    output = PipeReader(os.geteuid(), lane)
    mine = output.begin_cell(0.0)
    child = os.dup(mine[1])
    output.end_cell()
    (first, second) = output.descriptors(9.0)
    mine = next_cell(output, mine, 1.0)
    output.end_cell()
    assert is_closed(first)
    assert is_closed(second), "init has it"
    data, descriptors, _, _ = socket.recv_fds(theirs, 1 << 16, 4)
    assert protocol.FrameBuffer(100).feed(data) == [protocol.encode(protocol.Discard())]
    os.write(child, b"late")
    assert os.read(descriptors[0], 100) == b"late"
    close_all([child, *descriptors, *mine, *output.descriptors(9.0)])


def test_between_cells_what_is_written_is_not_waited_for(init: tuple[MessageStream, socket.socket]) -> None:
    lane, theirs = init
    output = PipeReader(os.geteuid(), lane)
    mine = output.begin_cell(0.0)
    output.end_cell()
    first, second = output.descriptors(9.0)
    os.write(mine[0], b"late")
    assert output.read(first, 9.0) is None
    assert output.descriptors(9.0) == [second]
    _, descriptors, _, _ = socket.recv_fds(theirs, 1 << 16, 4)
    os.write(mine[0], b"later")
    assert os.read(descriptors[0], 100) == b"later"
    close_all([*descriptors, *mine, second])


def test_an_init_that_does_not_read_is_given_no_more(init: tuple[MessageStream, socket.socket]) -> None:
    lane, _ = init
    lane.send(bytes(1 << 22))  # more than the socket holds
    output, held = PipeReader(os.geteuid(), lane), list[int]()
    mine: list[int] = []
    before = len(os.listdir("/proc/self/fd"))
    for number in range(30):
        mine = next_cell(output, mine, float(number))
        held.append(os.dup(mine[0]))
        output.end_cell()
    ours = len(os.listdir("/proc/self/fd")) - before - len(held)
    assert ours <= 16 + 4
    with pytest.raises(BrokenPipeError):
        os.write(held[28], b"x")
    close_all([*held, *mine, *output.descriptors(9.0)])


def test_an_order_goes_without_its_pipes_where_too_many_are_on_their_way() -> None:
    """The kernel counts by user, and against the limit of who sends; root is exempt."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = send_with_too_many_on_their_way()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def send_with_too_many_on_their_way() -> int:
    if os.geteuid() == 0:
        os.setresuid(65533, 65533, 65533)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 200), hard))
    null = os.open("/dev/null", os.O_RDONLY)
    full, (ours, theirs) = socket.socketpair(), socket.socketpair()
    lane = MessageStream(ours, protocol.FrameBuffer(1 << 16))
    with suppress(OSError):
        while True:
            socket.send_fds(full[0], [b"x"], [null])
    lane.send(b"order", [null])
    data, descriptors, _, _ = socket.recv_fds(theirs, 100, 4)
    told = protocol.FrameBuffer(100).feed(data) == [b"order"] and not lane.unsent_bytes
    return 0 if told and not descriptors and is_closed(null) else 2


def test_a_pipe_is_read_again_at_once_only_if_much_came(init: tuple[MessageStream, socket.socket]) -> None:
    """A guest that writes byte by byte costs a wakeup each two milliseconds, not one each byte."""
    lane, _ = init
    output = PipeReader(os.geteuid(), lane)
    mine = output.begin_cell(1.0)
    assert output.descriptors(1.001) == [], "a short cell is read at its end"
    assert output.read_at is not None
    stdout, _ = output.descriptors(output.read_at)
    os.write(mine[0], b"x")
    assert output.read(stdout, 2.0) == (1, b"x")
    assert output.descriptors(2.001) == []
    assert len(output.descriptors(2.01)) == 2
    os.write(mine[0], b"x" * (1 << 16))
    assert output.read(stdout, 3.0) == (1, b"x" * (1 << 16))
    assert len(output.descriptors(3.0)) == 2
    output.end_cell()
    close_all([*mine, *output.descriptors(9.0)])
