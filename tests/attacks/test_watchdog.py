"""Groups 5 and 6: memory and processor time that no limit of one process bounds."""

from __future__ import annotations

import contextlib
import time

import psutil
import pytest
from attacks.lab import OK, Arena, Attack, assert_alive, comes_true, name, outside, timed

from supdist.engine import CellResult, Outcome, SandboxLost

OOM = (Outcome.OOM,)

PAGE_TABLES = """
import ctypes, mmap, os, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
def tables(gibibytes):
    size = gibibytes << 30
    at = libc.mmap(None, size, 1, 0x4022, -1, 0)  # read-only, private, anonymous, without reserve
    if at == ctypes.c_void_p(-1).value: raise MemoryError(gibibytes)
    for offset in range(0, size, 2 << 20): ctypes.c_char.from_address(at + offset).value
"""
"""Guest code: 2 MiB of page tables for each GiB that is read; every page is the kernel's page of zeros."""

MAPPINGS = """
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
at = libc.mmap(None, 256 << 20, 0, 0x22, -1, 0)
for page in range(0, 65_000, 2): libc.mprotect(at + (page << 12), 4096, 1)
"""
"""Guest code: 14 MiB of the kernel's structures, and as much for each child; no page is touched."""

SOCKETS = """
import os, socket, time
held = []
def fill(sock):
    sock.setblocking(False)
    try:
        while True: sock.send(b"x" * 50_000)
    except OSError: pass
def pairs(kind, closes=False):
    try:
        while True:
            one, other = socket.socketpair(socket.AF_UNIX, kind)
            held.append(other)
            fill(one)
            if not closes:
                fill(other)
                held.append(one)
    except OSError: pass
def in_children(count, work):
    for _ in range(count):
        if os.fork() == 0:
            work()
            time.sleep(60)
    time.sleep(60)
def unaccepted():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")
    listener.listen(4000)
    for _ in range(4000):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(listener.getsockname())
            fill(client)
    time.sleep(60)
"""

UNSEEN: list[Attack] = [
    Attack(id="ME16", code=PAGE_TABLES + "tables(200)\ntime.sleep(60)", expect=(*OOM, Outcome.USER_ERROR),
        lost=None, timeout=6, within=8),
    Attack(
        id="ME16-children",
        code=PAGE_TABLES + "for _ in range(24):\n  if os.fork() == 0:\n    tables(12)\n    time.sleep(60)\n"
        "time.sleep(60)",
        expect=OOM, lost=None, timeout=6, within=8,
    ),
    Attack(
        id="ME16-mappings",
        code=MAPPINGS + "for _ in range(24):\n  if os.fork() == 0: time.sleep(60)\ntime.sleep(60)",
        expect=OOM, lost=None, timeout=20, within=25,
    ),
    Attack(id="ME17-datagrams", code=SOCKETS + "in_children(24, lambda: pairs(socket.SOCK_DGRAM))",
        expect=OOM, lost=None, timeout=6, within=8),
    Attack(id="ME17-streams", code=SOCKETS + "in_children(24, lambda: pairs(socket.SOCK_STREAM))",
        expect=OOM, lost=None, timeout=6, within=8),
    Attack(id="ME17-closed", code=SOCKETS + "in_children(24, lambda: pairs(socket.SOCK_STREAM, True))",
        expect=OOM, lost=None, timeout=6, within=8),
    Attack(id="ME17-unaccepted", code=SOCKETS + "unaccepted()", expect=OOM, lost=None, timeout=6, within=8),
]  # fmt: skip


@pytest.mark.parametrize("attack", UNSEEN, ids=name)
async def test_memory_that_belongs_to_no_process_is_bounded(arena: Arena, attack: Attack) -> None:
    await arena.carry_out(attack)


async def test_me16_me17_are_memory_outside() -> None:
    code = PAGE_TABLES + "tables(8)\nprint(open('/proc/self/status').read().split('VmPTE:')[1].split()[0])"
    assert int(await outside(code)) > 16 << 10
    assert int(await outside(MAPPINGS + "print(sum(1 for _ in open('/proc/self/maps')))")) > 60_000
    code = SOCKETS + "one, other = socket.socketpair(); fill(one); print(len(other.recv(1 << 20)))"
    assert int(await outside(code)) > 90_000


DROPPED = """
import ctypes, errno, os, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
def keep(flags, fd, mebibytes):
    size = mebibytes << 20
    at = libc.mmap(None, size, 3, flags, fd, 0)
    if at == ctypes.c_void_p(-1).value: return errno.errorcode[ctypes.get_errno()]
    ctypes.memset(at, 1, size)
    libc.munmap(at + 4096, size - 4096)  # the first page keeps them all
zero = os.open("/dev/zero", os.O_RDWR)
"""


@pytest.mark.parametrize("arguments", ["0x21, -1", "1, zero"], ids=["anonymous", "zero"])
async def test_me18_shared_memory_does_not_outlive_its_mapping(arena: Arena, arguments: str) -> None:
    assert await outside(DROPPED + f"print(keep({arguments}, 8))") == "None\n"
    code = DROPPED + f"print({{keep({arguments}, 20) for _ in range(20)}})\ntime.sleep(0.2)"
    async with arena.open() as sandbox:
        result = await timed(sandbox, code, timeout=5, within=8)
    if result.outcome is OK:
        assert result.stdout in ("{'EPERM'}\n", "{'ENODEV'}\n"), "nobody counts 400 MiB"
    else:
        assert result.outcome is Outcome.OOM


LEFT_BEHIND = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        time.sleep(1)
        held = bytearray(60 << 20)
        for at in range(0, len(held), 4096): held[at] = 1
        time.sleep(60)
        os._exit(0)
"""


async def next_end(arena: Arena) -> CellResult:
    """What a cell says after children of the last one have taken memory."""
    async with arena.open() as sandbox:
        before = count(arena)
        assert (await timed(sandbox, LEFT_BEHIND)).outcome is OK
        assert await comes_true(lambda: count(arena) > before)
        with_children = count(arena)
        assert await comes_true(lambda: count(arena) < with_children, 8), "nobody looks between cells"
        result = await timed(sandbox, "print(1)")
        with pytest.raises(SandboxLost):
            await sandbox.execute("print(2)")
        return result


def count(arena: Arena) -> int:
    """Processes behind walls that have not ended."""
    alive = 0
    for process in arena.machine.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            alive += process.status() != psutil.STATUS_ZOMBIE
    return alive


async def test_me15_memory_is_bounded_between_cells_and_the_next_cell_says_so(arena: Arena) -> None:
    end = await next_end(arena)
    assert (end.outcome, end.state_lost) == (Outcome.OOM, True)
    if end.usage.source == "none":
        assert "between two blocks its processes used" in end.detail
        assert "268435456 are allowed" in end.detail


BURN = """
import os, time
def burn(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end: pass
for _ in range(4):
    if os.fork() == 0:
        burn({seconds})
        os._exit(0)
"""


@pytest.mark.timing
async def test_cp9_processor_time_is_held_in_a_cell(arena: Arena) -> None:
    code = BURN.format(seconds=2) + "for _ in range(4): os.wait()"
    assert float(await outside(code + "\nprint(sum(os.times()[:4]))")) > 0.3
    async with arena.open(cpus=0.1) as sandbox:
        result = await timed(sandbox, code, timeout=5, within=10)
    assert result.usage.cpu_seconds / result.elapsed < 0.2


@pytest.mark.timing
async def test_cp9_processor_time_is_held_between_cells(arena: Arena) -> None:
    async with arena.open(cpus=0.1) as sandbox:
        await timed(sandbox, BURN.format(seconds=60), timeout=5, within=10)
        started, before = time.monotonic(), used(arena)
        await comes_true(lambda: False, 3)
        assert (used(arena) - before) / (time.monotonic() - started) < 0.3


def used(arena: Arena) -> float:
    """Seconds of processor time of all guests; the arena's other sandbox takes a little."""
    total = 0.0
    for process in arena.machine.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if not process.name().startswith("supdist"):
                total += sum(process.cpu_times()[:2])
    return total


CONTINUES_ITSELF = """
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
event = struct.pack("qii48x", 0, 18, 0)  # sigevent: SIGCONT, SIGEV_SIGNAL
timer = ctypes.c_void_p()
assert libc.timer_create(1, event, ctypes.byref(timer)) == 0
assert libc.timer_settime(timer, 0, struct.pack("4q", 0, 1_000_000, 0, 1_000_000), None) == 0
while True: pass
"""


@pytest.mark.timing
async def test_cp10_a_timer_that_continues_what_was_stopped_gains_little(arena: Arena) -> None:
    async with arena.open(cpus=0.05) as sandbox:
        result = await timed(sandbox, CONTINUES_ITSELF, timeout=5, within=8)
    assert result.outcome in (Outcome.TIMEOUT, Outcome.RESOURCE_LIMIT)
    assert result.usage.cpu_seconds < 2.5


@pytest.mark.timing
async def test_cp11_a_stopped_cell_is_interrupted_in_time_and_keeps_its_state(arena: Arena) -> None:
    async with arena.open(cpus=0.02, grace=1.0) as sandbox:
        await timed(sandbox, "kept = 1", timeout=5)
        result = await timed(sandbox, "while True: pass", timeout=1.5, within=3.5)
        assert (result.outcome, result.state_lost) == (Outcome.TIMEOUT, False)
        await assert_alive(sandbox)
        assert (await timed(sandbox, "print(kept)", timeout=5)).stdout == "1\n"
