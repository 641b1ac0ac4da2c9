"""Group 5: memory, descriptors, and storage that is memory."""

from __future__ import annotations

import pytest
from attacks.lab import DEATHS, OK, Arena, Attack, assert_alive, name, timed
from attacks.machine import CGROUPS, cgroup_folders
from support import syscall_number

from supdist.engine import Outcome
from supdist.engine.sandbox import CallError, WorkerCall

OOM = (Outcome.OOM,)
MIB = 1 << 20

# Without control groups shared memory is a file in /dev/shm, which is smaller.
SHARED_END = OOM if CGROUPS else (Outcome.USER_ERROR,)

SHARED = """
import mmap
def take(mebibytes):
    memory = mmap.mmap(-1, mebibytes << 20)
    for place in range(0, len(memory), 4096): memory[place] = 1
    return memory
"""
"""Guest code: memory that no limit per process counts, so that only one on the whole can."""

BOMBS: list[Attack] = [
    Attack(id="ME1-block", code="x = b'x' * (1 << 34)", expect=(Outcome.USER_ERROR, *OOM), lost=None),
    Attack(
        id="ME1-list", code="x = []\nwhile True: x.append(b'y' * 1_000_000)",
        expect=(Outcome.USER_ERROR, *OOM), lost=None,
    ),
    Attack(id="ME1-string", code="x = 'x'\nwhile True: x += x", expect=(Outcome.USER_ERROR, *OOM), lost=None),
    Attack(id="ME1-drawing", code="class R:\n  def _repr_png_(self): return b'x' * (1 << 34)\nR()",
        expect=(OK, *OOM), lost=None),
    Attack(id="ME1-drawings",
           code="class R:\n  def _repr_html_(self):\n    x = 'x'\n    while True: x += x\nR()",
           expect=(OK, *OOM), lost=None),
    Attack(
        id="ME3", code="""
import os, time
for _ in range(8):
    if os.fork() == 0:
        x = bytearray(os.urandom(4096)) * (64 * 256)
        time.sleep(60)
time.sleep(60)
""", expect=OOM, lost=None, timeout=1.5, within=4,
    ),
    Attack(id="ME4-shared-mapping", code=SHARED + "x = [take(64) for _ in range(16)]", expect=SHARED_END,
        lost=CGROUPS, within=6),
    Attack(
        id="ME5-memfd", code="""
import os
files = []
try:
    for _ in range(40):
        fd = os.memfd_create("m"); files.append(fd)
        for _ in range(50): os.write(fd, b"x" * (1 << 20))
except PermissionError: print("refused", len(files))
""",
        # Where no control group counts what no process maps, there is no such file at all.
        expect=OOM if CGROUPS else (OK,), says="" if CGROUPS else "refused 0", lost=CGROUPS, within=6,
    ),
    Attack(id="ME10-agent", code=SHARED + "x = [take(16) for _ in range(64)]", expect=SHARED_END,
        lost=CGROUPS, within=6),
    Attack(
        id="ME10-child", code=SHARED + """
import os, time
if os.fork() == 0:
    try: x = [take(16) for _ in range(64)]
    except OSError: x = bytearray(b"x") * (200 << 20)
    time.sleep(60)
x = bytearray(b"x") * (100 << 20)
time.sleep(60)
""", expect=OOM, lost=None, timeout=1.5, within=4,
    ),
    Attack(
        id="ME11", code="import os; os.kill(os.getpid(), 9)", expect=(Outcome.KILLED,), lost=True, within=2,
        detail="SIGKILL",
    ),
    Attack(
        id="ME11-status", code="import os; os._exit(137)", expect=(Outcome.CRASHED,), lost=True, within=2,
    ),
    Attack(
        id="ME12",
        code="x = []\nwhile True:\n  try: x.append(bytearray(1 << 20))\n  except MemoryError: pass",
        expect=(Outcome.TIMEOUT, *OOM), lost=None, timeout=0.7,
    ),
    Attack(
        id="ME14", code="import subprocess; subprocess.run(['true', 'x' * (1 << 22)])",
        expect=(Outcome.USER_ERROR,),
    ),
    Attack(
        id="ME14-environment",
        code="import subprocess; subprocess.run(['true'], env={str(i): 'x' * 100_000 for i in range(100)})",
        expect=(Outcome.USER_ERROR,),
    ),
]  # fmt: skip


@pytest.mark.parametrize("attack", BOMBS, ids=name)
async def test_memory_is_bounded_and_the_verdict_true(arena: Arena, attack: Attack) -> None:
    await arena.carry_out(attack)


async def test_me1_what_the_limit_allows_can_be_had(arena: Arena) -> None:
    """The control of this group."""
    async with arena.open() as sandbox:
        result = await timed(sandbox, "x = bytearray(100 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1")
    assert result.outcome is OK


@pytest.mark.parametrize("kind", ["heap", "shared"])
async def test_me2_slow_growth_over_cells_ends_truthfully(arena: Arena, kind: str) -> None:
    take = "bytearray(b'x') * (32 << 20)" if kind == "heap" else "take(32)"
    async with arena.open() as sandbox:
        await timed(sandbox, SHARED + "held = []")
        result = await timed(sandbox, "print(len(held))")
        for _ in range(9):
            if result.outcome is OK:
                result = await timed(sandbox, f"held.append({take})")
        assert result.outcome is not OK, "256 MiB hold no more than eight times 32"
        if result.outcome is Outcome.USER_ERROR:
            assert result.error is not None
            assert kind == "heap" or not CGROUPS
            assert result.error.type == ("MemoryError" if kind == "heap" else "OSError")
        else:
            assert (result.outcome, result.state_lost) == (Outcome.OOM, True), result


@pytest.mark.parametrize("folder", ["/dev/shm", "/tmp", "/work"])
async def test_me4_files_in_memory_have_an_end(arena: Arena, folder: str) -> None:
    code = f"""
import errno
written = 0
try:
    for n in range(1024):
        with open("{folder}/%d" % n, "wb", buffering=0) as file: written += file.write(b"x" * (1 << 20))
except OSError as error: print(errno.errorcode[error.errno], written >> 20)
"""
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
        await assert_alive(sandbox)
    word, mebibytes = result.stdout.split()
    assert word == "ENOSPC"
    assert 64 * arena.machine.scratch_part <= int(mebibytes) <= 64


async def test_me4_there_is_no_memory_that_outlives_processes(arena: Arena) -> None:
    code = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for number, arguments in (
    ({syscall_number("shmget")}, (0, 1 << 30, 0o1600)), ({syscall_number("msgget")}, (0, 0o1600)),
    ({syscall_number("semget")}, (0, 100, 0o1600)), ({syscall_number("mq_open")}, (b"m", 0o102, 0o600, 0)),
):
    print(libc.syscall(number, *arguments) == -1)
"""
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    assert result.stdout == "True\n" * 4


async def test_me5_huge_pages_are_refused(arena: Arena) -> None:
    code = """
import errno, mmap, os
for action in (lambda: os.write(os.memfd_create("h", os.MFD_HUGETLB), b""),
               lambda: mmap.mmap(-1, 2 << 20, flags=0x40022)):
    try: action(); print("did")
    except (OSError, ValueError) as error: print(errno.errorcode.get(getattr(error, "errno", 0)))
"""
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    assert set(result.stdout.split()) <= {"EPERM", "ENOSYS", "EINVAL", "ENOMEM"}


HOARDS = [
    ("pipes", "os.pipe()"),
    ("sockets", "socket.socketpair()"),
    ("epoll", "select.epoll()"),
    ("eventfd", "os.eventfd(0)"),
    ("inotify", "inotify()"),
    ("memfd", "os.memfd_create('m')"),
]


@pytest.mark.parametrize("make", [make for _, make in HOARDS], ids=[word for word, _ in HOARDS])
async def test_me6_kernel_objects_are_bounded(arena: Arena, make: str) -> None:
    code = f"""
import ctypes, errno, os, select, socket
def inotify():
    fd = ctypes.CDLL(None, use_errno=True).inotify_init1(0)
    if fd < 0: raise OSError(ctypes.get_errno(), "")
held = []
try:
    while True: held.append({make})
except OSError as error: word = errno.errorcode[error.errno]
count = len(held)
for each in held:
    for fd in each if isinstance(each, tuple) else (each,):
        if isinstance(fd, int): os.close(fd)
held.clear()
print(word, count)
"""
    async with arena.open(open_files=128) as sandbox:
        result = await timed(sandbox, code)
    word, count = result.stdout.split()
    assert word in ("EMFILE", "EPERM", "ENOSYS", "ENFILE", "ENOMEM")
    assert int(count) < 128


async def test_me6_full_buffers_are_bounded(arena: Arena) -> None:
    code = """
import os, socket
filled, held = 0, []
try:
    while True:
        one, other = socket.socketpair()
        held += [one, other]
        try: one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
        except PermissionError: pass
        one.setblocking(False)
        try:
            while True: filled += one.send(b"x" * 65536)
        except BlockingIOError: pass
except OSError as error: print(error.errno, filled >> 20)
"""
    async with arena.open(open_files=128) as sandbox:
        result = await timed(sandbox, code)
    assert result.outcome in (OK, Outcome.OOM)
    if result.outcome is OK:
        assert int(result.stdout.split()[1]) <= 256


async def test_me7_without_descriptors_there_is_a_verdict(arena: Arena) -> None:
    asked: list[str] = []

    async def answer(call: WorkerCall) -> list[str | CallError]:
        asked.extend(call.prompts)
        return ["answer"] * len(call.prompts)

    async with arena.open(on_call=answer) as sandbox:
        await timed(
            sandbox, "held = []\ntry:\n  while True: held.append(open('/dev/null'))\nexcept OSError: pass"
        )
        result = await timed(sandbox, "print(worker('x'))", within=3)
        assert result.outcome in (OK, Outcome.USER_ERROR, *DEATHS), result
        if result.outcome is OK:
            assert (result.stdout, asked) == ("answer\n", ["x"])


async def test_me9_nothing_is_swapped(arena: Arena) -> None:
    async with arena.open() as sandbox:
        await timed(sandbox, "x = bytearray(100 << 20)")
        inits = arena.machine.inits()
        assert inits
        for pid in inits:
            with open(f"/proc/{pid}/status", encoding="ascii") as status:
                assert not [line for line in status if line.startswith("VmSwap:") and line.split()[1] != "0"]
            own, engines = cgroup_folders(pid), cgroup_folders("self")
            unified, first = own.get(""), own.get("memory")
            if unified is not None and unified != engines[""] and (unified / "memory.max").exists():
                assert (unified / "memory.swap.max").read_text().strip() == "0"
            if first is not None and first != engines["memory"]:
                most = (first / "memory.limit_in_bytes").read_text()
                limit = first / "memory.memsw.limit_in_bytes"
                # Without swap accounting there is no such file; without swap none is needed.
                assert not limit.exists() or limit.read_text() == most
