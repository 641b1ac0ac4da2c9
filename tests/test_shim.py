"""The shim's loop; the test plays guest and engine, and the process behind it is not isolated."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Generator

import pytest

from supdist.engine import Outcome, SandboxConfig
from supdist.engine.jail.isolated_process import IsolatedProcess
from supdist.engine.jail.message_stream import MessageStream
from supdist.engine.jail.shim import Shim, meter_of
from supdist.sandbox_image import protocol

LIMITS, RESOURCES = SandboxConfig().session_limits(), SandboxConfig().resource_limits()


class End:
    """The other end of one of the shim's streams."""

    def __init__(self) -> None:
        self.shims, self._sock = socket.socketpair()
        self._sock.settimeout(10)
        self._frames = protocol.FrameBuffer(protocol.MAX_FRAME_BYTES)
        self._payloads: list[bytes] = []

    def say(self, message: protocol.FromGuest | protocol.ToShim) -> None:
        self._sock.sendall(protocol.frame(protocol.encode(message)))

    def next(self) -> bytes:
        """The next message; none at the end."""
        while not self._payloads:
            data, descriptors, _, _ = socket.recv_fds(self._sock, 1 << 20, 4)
            for fd in descriptors:
                os.close(fd)
            if not data:
                return b""
            self._payloads += self._frames.feed(data)
        return self._payloads.pop(0)

    def close(self) -> None:
        self._sock.close()


class Place:
    """A shim in a thread, with a cell that runs, and all that it has told the engine so far."""

    def __init__(self) -> None:
        self.engine, self.init, self.repl = End(), End(), End()
        self._sync = socket.socketpair()
        self.guest = os.fork()
        if self.guest == 0:
            os.closerange(3, 1 << 16)  # else nobody hangs up
            signal.pause()
            os._exit(0)
        process = IsolatedProcess(
            self.guest,
            self._sync[0],
            init_stream=self.init.shims,
            repl_stream=self.repl.shims,
            uid=os.geteuid(),
        )
        lane = MessageStream(self.engine.shims, protocol.FrameBuffer(protocol.MAX_FRAME_BYTES))
        self._shim = threading.Thread(
            target=self._run,
            args=(Shim(LIMITS, lane, process, meter_of(process, RESOURCES)), lane),
            daemon=True,
        )

    def _run(self, shim: Shim, engine: MessageStream) -> None:
        shim.serve()
        engine.drain(10.0)

    def start(self) -> None:
        self._shim.start()
        self.repl.say(protocol.Ready(protocol.VERSION, protocol.Facts({}, 1, 0, True, True, [], False)))
        assert isinstance(self.tells(), protocol.Ready)
        self.engine.say(protocol.Execute(1, "code", 60.0))
        assert isinstance(protocol.decode_to_guest(self.repl.next()), protocol.Execute)

    def tells(self) -> protocol.FromShim:
        return protocol.decode_from_shim(self.engine.next())

    def tells_until_the_end(self) -> list[protocol.FromShim]:
        told: list[protocol.FromShim] = []
        while not told or not isinstance(told[-1], protocol.Exit):
            told.append(self.tells())
        self._shim.join(10)
        return told

    def close(self) -> None:
        for end in (self.engine, self.init, self.repl):
            end.close()
        self._shim.join(10)
        for sock in (*self._sync, self.engine.shims):
            sock.close()
        assert not self._shim.is_alive()


@pytest.fixture
def place() -> Generator[Place]:
    place = Place()
    place.start()
    yield place
    place.close()


def verdict(told: list[protocol.FromShim]) -> tuple[Outcome, str]:
    """How the cell ended, and the sandbox with it."""
    end, gone = told[-2:]
    assert isinstance(end, protocol.CellEnd)
    assert isinstance(gone, protocol.Exit)
    assert (end.outcome, end.detail, end.state_lost) == (gone.outcome, gone.detail, True)
    return end.outcome, end.detail


def test_what_the_repl_said_is_told_though_init_ended_without_a_word(place: Place) -> None:
    place.repl.say(protocol.Final(1, "x"))
    place.init.close()
    told = place.tells_until_the_end()
    assert told[0] == protocol.Final(1, "x")
    assert verdict(told)[0] is Outcome.CRASHED


def test_what_the_repl_said_is_told_before_its_death(place: Place) -> None:
    place.repl.say(protocol.Final(1, "x" * 1_000_000))  # returns when what is left fits into the socket
    place.init.say(protocol.ReplExit(signal.SIGKILL, hung_up=False))
    told = place.tells_until_the_end()
    assert told[0] == protocol.Final(1, "x" * 1_000_000)
    assert verdict(told)[0] is Outcome.KILLED


def test_init_is_told_of_a_repl_that_hung_up_and_says_how_it_ended(place: Place) -> None:
    place.repl.close()
    assert protocol.decode_to_guest(place.init.next()) == protocol.HungUp()
    place.init.say(protocol.ReplExit(0, hung_up=True))
    assert verdict(place.tells_until_the_end()) == (Outcome.CRASHED, "the interpreter closed its stream")


@pytest.mark.parametrize(
    ("who", "message"),
    [
        ("repl", protocol.FileData(1, b"", None)),
        ("repl", protocol.FileList(1, [], False)),
        ("repl", protocol.ReplExit(0, hung_up=False)),
        ("init", protocol.Final(1, "x")),
        ("init", protocol.Done(1, None)),
        ("init", protocol.Call(1, 1, ["x"])),
        ("init", protocol.Output(1, 1, b"x")),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_neither_speaks_for_the_other(place: Place, who: str, message: protocol.FromGuest) -> None:
    {"repl": place.repl, "init": place.init}[who].say(message)
    outcome, detail = verdict(place.tells_until_the_end())
    assert (outcome, "init" in detail) == (Outcome.PROTOCOL_VIOLATION, True)


def test_interrupts_and_files_are_inits_and_calls_the_repls(place: Place) -> None:
    place.engine.say(protocol.GetFile(1, "a", 0, 10))
    assert protocol.decode_to_guest(place.init.next()) == protocol.GetFile(1, "a", 0, 10)
    place.init.say(protocol.FileData(1, b"data", None))
    assert place.tells() == protocol.FileData(1, b"data", None)
    place.repl.say(protocol.Call(1, 1, ["x"]))
    assert place.tells() == protocol.Call(1, 1, ["x"])
    place.engine.say(protocol.Reply(1, ["y"]))
    assert protocol.decode_to_guest(place.repl.next()) == protocol.Reply(1, ["y"])
    place.engine.say(protocol.Interrupt(1))
    assert protocol.decode_to_guest(place.init.next()) == protocol.Interrupt(1)
    place.engine.say(protocol.Kill())
    assert verdict(place.tells_until_the_end())[0] is Outcome.KILLED
