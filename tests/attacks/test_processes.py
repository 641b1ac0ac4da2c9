"""Group 4: processes and signals."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from attacks.lab import (
    ATTEMPT,
    DEATHS,
    OK,
    Arena,
    Attack,
    assert_alive,
    comes_true,
    host_process,
    is_alive,
    name,
    outside,
    timed,
)
from support import syscall_number

from supdist.engine import Outcome

KILL_ALL = """
import os, subprocess
sibling = subprocess.Popen(["sleep", "60"])
pid = os.fork()
if pid == 0:
    os.kill(-1, 9)
    os._exit(0)
print(sibling.wait(), flush=True)
import time
time.sleep(60)
"""


async def test_pr1_killing_everything_kills_the_guest_alone(arena: Arena) -> None:
    async with host_process() as canary, arena.open() as sandbox:
        result = await timed(sandbox, KILL_ALL, timeout=5, within=1.5)
        assert is_alive(canary)
    assert (result.outcome, result.state_lost) == (Outcome.KILLED, True), result


async def test_pr1_killing_everything_but_oneself(arena: Arena) -> None:
    code = """
import os, subprocess
sibling = subprocess.Popen(["sleep", "60"])
os.kill(-1, 9)
print(sibling.wait())
"""
    async with host_process() as canary, arena.open() as sandbox:
        result = await timed(sandbox, code)
        assert is_alive(canary)
        await assert_alive(sandbox)
    assert result.stdout == "-9\n", "the payload works, on its own kind"


async def test_pr2_no_process_of_the_host_can_be_killed(arena: Arena) -> None:
    code = """
import os, signal
own = {int(p) for p in os.listdir("/proc") if p.isdecimal()} if os.path.isdir("/proc/1") else set()
hit = []
for pid in range(%d - 200, %d + 200):
    if pid > 0 and pid not in own:
        try: os.kill(pid, signal.SIGKILL); hit.append(pid)
        except OSError: pass
print(hit)
"""
    async with host_process() as canary, arena.open() as sandbox:
        result = await timed(sandbox, code % (canary.pid, canary.pid))
        engine = await timed(sandbox, code % (os.getpid(), os.getpid()))
        assert is_alive(canary)
        assert result.stdout == engine.stdout == "[]\n"
        await outside(f"import os; os.kill({canary.pid}, 9)")
        assert await comes_true(lambda: not is_alive(canary)), "the host's own user can"


AGENT: list[Attack] = [
    Attack(id="PR3-kill-init", code="import os; os.kill(os.getppid(), 9)"),
    Attack(id="PR3-stop-init", code="import os; os.kill(os.getppid(), 19)"),
    Attack(id="PR3-term-init", code="import os\nfor n in (1, 2, 3, 15, 17, 10, 12): os.kill(1, n)"),
    Attack(
        id="PR3-child-kills-repl",
        code="import os, time\nif os.fork() == 0: os.kill(os.getppid(), 9)\ntime.sleep(60)",
        expect=DEATHS, lost=True, timeout=5, within=2,
    ),
    Attack(
        id="PR3-child-stops-repl",
        code="import os, time\nif os.fork() == 0:\n  os.kill(os.getppid(), 19)\n  time.sleep(60)\n"
            "time.sleep(60)",
        expect=(*DEATHS, Outcome.TIMEOUT), lost=None, timeout=5, within=2,
    ),
    Attack(
        id="PR4",
        code="import signal\nfor n in (1, 2, 14, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        expect=(Outcome.TIMEOUT,), lost=True, timeout=0.3, within=1.5,
    ),
    Attack(
        id="PR5",
        code="import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        expect=(Outcome.TIMEOUT,), lost=True, timeout=0.3, within=1.5,
    ),
    Attack(
        id="PR6", code="while True:\n  try:\n    for x in iter(int, 1): x += 1\n  except BaseException: pass",
        expect=(Outcome.TIMEOUT,), lost=True, timeout=0.3, within=1.5,
    ),
    Attack(
        id="PR6-finally", code="def f():\n  try:\n    for x in iter(int, 1): x += 1\n  finally: f()\nf()",
        expect=(Outcome.TIMEOUT,), lost=True, timeout=0.3, within=1.5,
    ),
    Attack(
        id="PR8-plain", code="import os\nwhile True: os.fork()", lost=None,
        expect=(Outcome.RESOURCE_LIMIT,),
    ),
    Attack(
        id="PR8-stubborn", code="import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
        expect=(Outcome.RESOURCE_LIMIT, Outcome.TIMEOUT), lost=None, timeout=0.7,
    ),
    Attack(
        id="PR9",
        code="import threading, time\n"
            "while True: threading.Thread(target=time.sleep, args=(30,), daemon=True).start()",
            expect=(Outcome.USER_ERROR, Outcome.RESOURCE_LIMIT), lost=None,
    ),
    Attack(id="PR13-exit", code="import os; os._exit(0)", expect=(Outcome.CRASHED,), lost=True, timeout=5,
        within=1.5),
    Attack(id="PR13-abort", code="import os; os.abort()", expect=(Outcome.CRASHED,), lost=True, timeout=5,
        within=1.5),
    Attack(
        id="PR13-exec", code="import os; os.execv('/bin/sleep', ['sleep', '60'])",
        expect=(Outcome.CRASHED,), lost=True, timeout=5, within=1.5,
    ),
    Attack(
        id="PR13-exec-true", code="import os; os.execv('/bin/true', ['true'])",
        expect=(Outcome.CRASHED,), lost=True, timeout=5, within=1.5,
    ),
    Attack(id="PR13-sys-exit", code="import sys; sys.exit(0)", expect=(Outcome.USER_ERROR,)),
    Attack(
        id="PR14-sleeper", code="import subprocess; subprocess.Popen(['sleep', '1000']); print('done')",
        says="done", within=1.5,
    ),
    Attack(
        id="PR14-talker",
        code="import subprocess; subprocess.Popen(['sh', '-c', 'while :; do echo LATE; done'])\n"
        "print('done')",
        says="done", expect=(OK, Outcome.OUTPUT_LIMIT), lost=None,
    ),
]  # fmt: skip


INITS = {attack.code for attack in AGENT if attack.id in ("PR3-kill-init", "PR3-stop-init", "PR3-term-init")}
"""They do nothing to the first process of a namespace, where the kernel is Linux."""


@pytest.mark.parametrize("attack", AGENT, ids=name)
async def test_the_verdict_is_in_time_and_true(arena: Arena, attack: Attack) -> None:
    if attack.id == "PR8-plain" and not arena.machine.counts_refusals:
        # Only the guest learns of it, and the host does not believe it. Slow forks reach the time limit.
        attack = replace(attack, expect=(Outcome.RESOURCE_LIMIT, Outcome.USER_ERROR, Outcome.TIMEOUT))
    if attack.code in INITS and not arena.machine.protects_init:
        attack = replace(attack, expect=(*DEATHS, Outcome.TIMEOUT), lost=True)  # its own loss, and told
    await arena.carry_out(attack)


async def test_pr8_the_bomb_reaches_its_limit_and_no_further(arena: Arena) -> None:
    code = """
import os
children = 0
try:
    while True:
        if os.fork() == 0:
            import time
            time.sleep(60)
        children += 1
except OSError as error: print(children, error.errno, flush=True)
"""
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    children, errno = result.stdout.split()
    assert 20 <= int(children) < 32
    assert int(errno) == 11


DAEMON = """
import os, subprocess, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 256)
        os.execv("/bin/sh", ["sh", "-c", "{body}", "{word}"])
    os._exit(0)
time.sleep(0.2)
"""


async def test_pr7_a_daemon_does_not_outlive_its_sandbox(arena: Arena) -> None:
    word, before = "daemon" + secrets.token_hex(8), set(arena.machine.inits())
    async with arena.open() as sandbox:
        await timed(sandbox, DAEMON.format(body="trap '' 1 2 3 15; while :; do sleep 600; done", word=word))
        assert len(arena.machine.marked(word, before)) == 1, "it is alive as long as its sandbox is"
        await assert_alive(sandbox)
    assert await comes_true(lambda: arena.machine.marked(word, before) == [])


@pytest.mark.timing
async def test_pr10_forking_faster_than_one_can_kill_does_not_help(arena: Arena) -> None:
    word, before = "racer" + secrets.token_hex(8), set(arena.machine.inits())
    code = DAEMON.format(body="while :; do (sleep 0.01; :) & (:) & wait; done", word=word)
    async with arena.open() as sandbox:
        await timed(sandbox, code)
        assert arena.machine.marked(word, before)
        started = time.monotonic()
        await sandbox.close()
        assert time.monotonic() - started < 2 + arena.machine.start_seconds
    assert await comes_true(lambda: arena.machine.marked(word, before) == [])


PEEK = (
    ATTEMPT
    + f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    words = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    if libc.syscall(ctypes.c_long(number), *words) == -1:
        raise OSError(ctypes.get_errno(), "")
buffer = ctypes.create_string_buffer(8)
class Span(ctypes.Structure): _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))
here = Span(ctypes.addressof(buffer), 8)
for pid in TARGETS:
    pidfd = os.pidfd_open(pid)
    print(attempt(call, {syscall_number("ptrace")}, 16, pid, 0, 0),
          attempt(call, {syscall_number("process_vm_readv")},
                  pid, ctypes.byref(here), 1, ctypes.byref(here), 1, 0),
          attempt(call, {syscall_number("process_vm_writev")},
                  pid, ctypes.byref(here), 1, ctypes.byref(here), 1, 0),
          attempt(call, {syscall_number("pidfd_getfd")}, pidfd, 0, 0),
          attempt(lambda: open(f"/proc/{{pid}}/mem", "r+b")) if pid != os.getpid() else "EPERM",
          attempt(lambda: os.listdir(f"/proc/{{pid}}/fd")) if pid != os.getpid() else "EPERM",
          attempt(lambda: os.listdir(f"/proc/{{pid}}/map_files")) if pid != os.getpid() else "EPERM")
"""
)


async def test_pr11_no_process_can_be_looked_into_or_steered(arena: Arena) -> None:
    async with arena.open() as sandbox:
        result = await timed(sandbox, PEEK.replace("TARGETS", "(1, os.getpid())"))
    for line in result.stdout.splitlines():
        assert set(line.split()) <= {"EPERM", "EACCES", "ENOSYS", "ESRCH", "ENOENT"}, result
    assert len(result.stdout.splitlines()) == 2, result
    control = await outside(PEEK.replace("TARGETS", "(os.getpid(),)"))
    assert control.split()[1:4] == ["did", "did", "did"], "without walls a process can do it to itself"


async def test_pr12_the_dead_are_reaped(arena: Arena) -> None:
    code = """
import os, time
made = 0
while made < ORPHANS:
    try: pid = os.fork()
    except BlockingIOError: time.sleep(0.005); continue
    if pid == 0:
        try: os.fork()
        except OSError: pass
        os._exit(0)
    os.waitpid(pid, 0)
    made += 1
print(made)
"""
    async with arena.open() as sandbox:
        orphans = arena.machine.orphans
        result = await timed(sandbox, code.replace("ORPHANS", str(orphans)), timeout=5, within=6)
        assert result.stdout == f"{orphans}\n", "with 32 at once, so many pass only if they are reaped"
        for pid in arena.machine.inits():
            states = [child.status() for child in psutil.Process(pid).children()]
            assert psutil.STATUS_ZOMBIE not in states
        await assert_alive(sandbox)


ENGINE = """
import asyncio
from supdist.engine import open_sandbox
async def main():
    async with open_sandbox({config}) as sandbox:
        print("busy", flush=True)
        await sandbox.execute({code!r}, timeout=600)
asyncio.run(main())
"""


async def test_pr16_a_guest_does_not_outlive_its_engine(arena: Arena, tmp_path: Path) -> None:
    word = "orphan" + secrets.token_hex(8)
    code = (
        DAEMON.format(body="trap '' 1 2 3 15; while :; do sleep 600; done", word=word) + "\nwhile True: pass"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ENGINE.format(code=code, config=arena.machine.source),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"busy\n"
    alive = arena.machine.has_host_processes
    assert await comes_true(lambda: not alive or bool(arena.machine.marked(word, set())))
    tree = arena.machine.processes(process.pid)
    assert tree
    process.send_signal(signal.SIGKILL)
    await process.wait()
    assert await comes_true(lambda: not any(each.is_running() for each in tree), 5)
    assert await comes_true(lambda: not alive or arena.machine.marked(word, set()) == [], 5)
    assert list(tmp_path.iterdir()) == []
