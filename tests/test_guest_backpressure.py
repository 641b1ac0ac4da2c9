"""A guest that sends faster than it may: nothing grows, nothing is forgotten."""

from __future__ import annotations

import psutil
import pytest
from process_support import descendants

from supdist.engine import SandboxConfig, open_sandbox
from supdist.sandbox_image import protocol
from supdist.sandbox_image.guest_session import Backlog, GuestSession
from supdist.sandbox_image.protocol import Outcome

SEND_RAW = """
import os, sys
protocol = sys.modules["supdist.sandbox_image.protocol"]
import gc
primitives = next(found for found in gc.get_objects() if type(found).__name__ == 'Primitives')
channel = primitives._channel
cell = primitives._current_cell()
def frame(*fields):
    return protocol.frame(protocol.encode(fields))
def send(data):
    view = memoryview(data)
    while view:
        view = view[os.write(channel._sock.fileno(), view):]
"""
CALL, DONE = protocol.tag(protocol.Call), protocol.tag(protocol.Done)


def session_with(*messages: protocol.FromGuest) -> GuestSession:
    limits = SandboxConfig().session_limits()
    session = GuestSession(limits, has_two_streams=True)
    session.from_engine(protocol.Execute(1, "", 60.0), 0.0)
    session.from_guest("repl", [protocol.encode(message) for message in messages])
    return session


def session_that_waits_for_its_rate() -> GuestSession:
    rate = int(SandboxConfig().calls_per_second)
    # The cell is interrupted, so its calls are refused and none is pending: only the rate holds frames back.
    session = session_with(*(protocol.Call(n, 1, [""]) for n in range(1, 2 * rate + 100)))
    session.from_engine(protocol.Interrupt(1), 0.0)
    while session.has_frames and session.may_process(0.0, Backlog()):
        session.process_frame(0.0)
    assert session.has_frames
    return session


def test_while_frames_wait_the_guest_is_not_read() -> None:
    assert not session_that_waits_for_its_rate().may_read(0.0, Backlog())


def test_asking_whether_to_read_does_not_forget_when_the_next_frame_is_due() -> None:
    session = session_that_waits_for_its_rate()
    due = session.next_time()
    assert due is not None
    assert not session.may_read(due + 0.1, Backlog()), "frames wait"
    assert session.next_time() == due
    assert session.may_process(due + 0.1, Backlog())


@pytest.mark.parametrize("status", [-1, 0x7F, 0xFFFF, 0x10000, 1 << 40])
def test_an_exit_status_that_no_process_has_is_a_violation(status: int) -> None:
    session = session_with()
    session.from_guest("init", [protocol.encode(protocol.ReplExit(status, hung_up=False))])
    session.process_frame(0.0)
    assert session.ending is not None
    assert session.ending.outcome is Outcome.PROTOCOL_VIOLATION


async def test_a_burst_of_calls_with_the_end_of_its_cell_is_no_timeout() -> None:
    code = f"""{SEND_RAW}
burst = b"".join(frame({CALL}, n, cell, [""]) for n in range(1, 20_000))
send(burst + frame({DONE}, cell, None))
import time; time.sleep(60)
"""
    async with open_sandbox() as sandbox:
        result = await sandbox.execute(code, timeout=30)
        assert result.outcome is not Outcome.TIMEOUT, result.detail


@pytest.mark.slow
async def test_a_flood_of_late_calls_does_not_grow_the_shim() -> None:
    """Between cells there is no deadline, and what the shim holds is outside the sandbox's memory limit."""
    code = f"""{SEND_RAW}
import threading
def flood():
    n = 0
    while True:
        send(b"".join(frame({CALL}, n := n + 1, cell, [""]) for _ in range(200)))
threading.Thread(target=flood, daemon=True).start()
"""
    async with open_sandbox() as sandbox:
        await sandbox.execute(code)
        (shim,) = [
            process
            for process in map(psutil.Process, descendants(psutil.Process().pid))
            if process.name() == "supdist-shim"
        ]
        sizes: list[int] = []
        for _ in range(3):
            await sandbox.execute("import time; time.sleep(1)", timeout=30)
            sizes.append(shim.memory_info().rss)
        assert sizes[-1] - sizes[0] < 4 << 20, sizes
