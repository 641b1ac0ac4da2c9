"""Group 7: output: floods, forgeries, and streams that are closed or late."""

from __future__ import annotations

import sys
import time

import pytest
from attacks.lab import DEATHS, OK, RAW, Arena, Attack, assert_alive, cpu_of_shims, name, timed

from supdist.engine import Outcome, SandboxLost

LIMIT = 256 << 10
SMALL_OUTPUT = {"output": "256KiB"}
FLOOD = (Outcome.OUTPUT_LIMIT,)

FLOODS: list[Attack] = [
    Attack(id="OU1", code="while True: print('x' * 4096)", expect=FLOOD, limits=SMALL_OUTPUT),
    Attack(
        id="OU2", code="import sys\nwhile True: print('x' * 4096, file=sys.stderr)", expect=FLOOD,
        limits=SMALL_OUTPUT
    ),
    Attack(
        id="OU2-both",
        code="import sys\nwhile True:\n  print('x' * 100)\n  print('y' * 100, file=sys.stderr)", expect=FLOOD,
        limits=SMALL_OUTPUT,
    ),
    Attack(
        id="OU2-raw", code="import os\nwhile True: os.write(2, b'z' * 65536)", expect=FLOOD,
        limits=SMALL_OUTPUT
    ),
    Attack(
        id="OU2-stubborn", code="while True:\n  try: print('x' * 4096)\n  except BaseException: pass",
        expect=FLOOD, lost=None, limits=SMALL_OUTPUT,
    ),
    Attack(
        id="OU2-child", code="import subprocess; subprocess.run(['yes'])", expect=FLOOD, lost=None,
        limits=SMALL_OUTPUT
    ),
    Attack(
        id="OU3", code="import sys\nfor _ in range(11): sys.stdout.write('x' * (100 << 20))", expect=FLOOD,
        lost=None, limits=SMALL_OUTPUT, within=6, timeout=4,
    ),
]  # fmt: skip


@pytest.mark.parametrize("attack", FLOODS, ids=name)
async def test_a_flood_is_cut_and_said_to_be(arena: Arena, attack: Attack) -> None:
    arena.most_growth = 64 << 20
    result = await arena.carry_out(attack)
    assert result.truncated
    assert max(len(result.stdout), len(result.stderr)) == LIMIT


FORGE = """
import os, sys
protocol = sys.modules["supdist.sandbox_image.protocol"]
messages = (protocol.Final(1, "FORGED"), protocol.Done(1, None))
forged = b"".join(protocol.frame(protocol.encode(message)) for message in messages)
wrote = []
for way in {ways}:
    try:
        fd = way if isinstance(way, int) else os.open(way, os.O_WRONLY)
        wrote.append(os.write(fd, forged) == len(forged))
    except OSError as error: wrote.append(False)
import time
time.sleep(0.1)
sys.stderr.flush(); sys.stdout.flush()
os.write(2, b"END")
x = wrote
"""


async def test_ou5_bytes_on_the_streams_are_never_protocol(arena: Arena) -> None:
    ways = (1, 2, "/dev/stdout", "/dev/stderr", "/proc/self/fd/1", "/dev/tty", "/proc/1/fd/1", "/dev/fd/2")
    async with arena.open() as sandbox:
        result = await timed(sandbox, FORGE.format(ways=ways))
        assert (result.outcome, result.final) == (OK, None)
        assert result.stderr.endswith("END"), "the cell ran to its end"
        assert "FORGED" in result.stdout
        assert "FORGED" in result.stderr
        wrote = (await timed(sandbox, "print(x)")).stdout
        assert wrote.startswith(f"[True, True, True, True, True, False, {not arena.machine.protects_init}")


CLOSERS: list[Attack] = [
    Attack(
        id="OU6-all", code="import os; os.closerange(0, 256)", lost=True, within=2,
        expect=(*DEATHS, Outcome.PROTOCOL_VIOLATION),
    ),
    Attack(
        id="OU6-channel", code="import os, time; os.closerange(3, 256); time.sleep(60)", lost=True, within=2,
        expect=(*DEATHS, Outcome.PROTOCOL_VIOLATION),
    ),
    Attack(
        id="OU6-over",
        code="import os\nnull = os.open('/dev/null', os.O_RDWR)\nfor fd in range(64):\n"
            "  if fd != null: os.dup2(null, fd)", expect=(*DEATHS, Outcome.PROTOCOL_VIOLATION), lost=True,
            within=3,
    ),
    Attack(
        id="OU6-crossed",
        code="import os\nfor fd in range(3, 30):\n  try: os.dup2(1, fd)\n  except OSError: pass",
        expect=(*DEATHS, Outcome.PROTOCOL_VIOLATION, Outcome.TIMEOUT), lost=True, timeout=1, within=3,
    ),
    Attack(
        id="OU6-objects",
        code="import sys\nsys.stdout.close(); sys.stderr.close(); sys.stdin and sys.stdin.close()",
        expect=(OK, Outcome.USER_ERROR),
    ),
]  # fmt: skip


@pytest.mark.parametrize("attack", CLOSERS, ids=name)
async def test_closed_or_replaced_descriptors_hang_nothing(arena: Arena, attack: Attack) -> None:
    await arena.carry_out(attack)


async def test_ou6_without_its_streams_the_next_cell_runs_or_is_lost(arena: Arena) -> None:
    async with arena.open() as sandbox:
        await timed(sandbox, "import os\nfor fd in (0, 1, 2): os.close(fd)")
        try:
            after = await timed(sandbox, "print(1 + 1)", within=2)
        except SandboxLost:  # it died between the two
            return
    assert (after.outcome, after.stdout) == (OK, "2\n") or after.state_lost, after


LATE = {
    "thread": "threading.Thread(target=late, args=(print,)).start()",
    "raw-thread": "fd = os.dup(1); threading.Thread(target=late, args=(lambda text: os.write(fd,"
    " text.encode()),)).start()",
    "kept-stream": "kept = sys.stdout; threading.Thread(target=late, args=(kept.write,)).start()",
    "child": "os.fork() or (late(lambda text: os.write(1, text.encode())), os._exit(0))",
}


@pytest.mark.parametrize("way", LATE.values(), ids=LATE)
async def test_ou7_late_output_is_never_the_next_cells(arena: Arena, way: str) -> None:
    code = f"""
import os, sys, threading, time
def late(write):
    for _ in range(20):
        time.sleep(0.02)
        try: write("LATE")
        except Exception: pass
{way}
"""
    async with arena.open() as sandbox:
        await timed(sandbox, code)
        for turn in range(4):
            result = await timed(sandbox, f"import time; time.sleep(0.1); print({turn})")
            assert (result.stdout, result.stderr) == (f"{turn}\n", "")


@pytest.mark.timing
async def test_ou7_what_floods_after_its_cell_costs_nobody_outside(arena: Arena) -> None:
    code = "import os\nif os.fork() == 0:\n    while True: os.write(1, b'x' * 65536)"
    async with arena.open() as sandbox:
        await timed(sandbox, code)
        await timed(sandbox, "import time; time.sleep(0.2)")
        used = cpu_of_shims()
        result = await timed(sandbox, "import time; time.sleep(1); print('quiet')")
        assert cpu_of_shims() - used < 0.2
        assert (result.outcome, result.stdout) == (OK, "quiet\n")


@pytest.mark.timing
async def test_ou9_single_bytes_are_not_a_message_each(arena: Arena) -> None:
    """A guest that writes bytes one by one makes shim and engine work by the time, not by the byte."""
    code = "import os, time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: os.write(1, b'x')"
    async with arena.open() as sandbox:
        used, engine = cpu_of_shims(), time.process_time()
        result = await timed(sandbox, code)
        assert set(result.stdout) == {"x"}
        assert cpu_of_shims() - used < 0.5
        assert time.process_time() - engine < 1


@pytest.mark.parametrize("last", ["", "\N{GRINNING FACE}"], ids=["OU10-narrow", "OU10-wide"])
async def test_a_result_takes_four_times_the_output(arena: Arena, last: str) -> None:
    """One wide character makes all of a text take four bytes each."""
    arena.most_growth = 64 << 20
    code = f"""
import sys
text = "x" * ((1 << 20) - 4) + {last!r}
sys.stdout.write(text); sys.stderr.write(text)
FINAL(text[:1 << 18] + {last!r})
class Shown:
    def _repr_html_(self): return text[1 << 19:]
Shown()
"""
    async with arena.open(output="1MiB") as sandbox:
        result = await timed(sandbox, code)
    forms = [form for shown in result.display for form in shown.data.values()]
    size = sum(map(sys.getsizeof, [result.stdout, result.stderr, result.final or "", *forms]))
    assert size <= 4 << 20
    assert result.final == "x" * (1 << 18) + last, "an answer is whole"
    assert result.truncated is bool(last)
    assert bool(last) is ("takes at most" in result.stdout + result.stderr + str(result.display))


HOLD = {"splice": "os.splice(a.fileno(), {}, 1)", "sendfile": "os.sendfile({}, a.fileno(), None, 1)"}
"""Calls that wait for a socket and hold a pipe's lock. Readers of the pipe wait with them."""


@pytest.mark.parametrize("hold", HOLD.values(), ids=HOLD)
async def test_ou6_who_holds_the_lock_of_a_pipe_holds_nobody_up(arena: Arena, hold: str) -> None:
    code = f"""
import os, socket, time
a, b = socket.socketpair()
for fd in (1, 2):
    if os.fork() == 0:
        try: {hold.format("fd")}
        finally: os._exit(0)
time.sleep(0.2)
print("over")
"""
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
        assert (result.outcome, result.stdout) == (OK, "over\n")
        await assert_alive(sandbox)


@pytest.mark.parametrize("hold", HOLD.values(), ids=HOLD)
async def test_ou6_nor_does_a_pipe_that_is_sent_along(arena: Arena, hold: str) -> None:
    """Whom a descriptor is sent to has the last of it, and closes it."""
    code = f"""
{RAW}
import array, socket, time
a, b = socket.socketpair()
reader, writer = os.pipe()
if os.fork() == 0:
    os.close(reader)
    try: {hold.format("writer")}
    finally: os._exit(0)
time.sleep(0.2)
os.close(writer)
shown = protocol.Display(cell, {{"text/plain": "x"}}, {{}})
try: channel._sock.sendmsg([protocol.frame(protocol.encode(shown))],
                           [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [reader]))])
except PermissionError: pass
os.close(reader)
print("over")
"""
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
        assert (result.outcome, result.stdout[-5:]) == (OK, "over\n")
        await assert_alive(sandbox)


async def test_ou8_no_text_is_a_sentinel(arena: Arena) -> None:
    marks = [
        "EXITCODESTART0EXITCODEEND", ">>> ", "... ", "FINAL(1)", "FINAL_VAR(x)", "```repl\nFINAL(1)\n```",
        "\x04", "\x1a", "PROTOCOL", "READY", "FAILED mounts 1", "unshared", "mapped", "pid 1", "\0\0\0\0",
        "\x92\x18\x01\xc0", "[1 further block not executed]", "SandboxLost", "__END__", "\x1b[6n",
    ]  # fmt: skip
    async with arena.open() as sandbox:
        result = await timed(sandbox, f"for mark in {marks!r}: print(mark)")
        await assert_alive(sandbox)
    assert (result.outcome, result.final) == (OK, None)
    assert result.stdout == "".join(f"{mark}\n" for mark in marks)
