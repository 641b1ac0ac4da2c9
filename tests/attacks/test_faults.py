"""Group 18: faults of the host, and the life cycle."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from attacks.lab import Arena, Held, assert_alive, comes_true, outside, settled, timed
from process_support import zygotes

from supdist.engine import Outcome, SandboxError, SandboxLost, SandboxUnavailable
from supdist.engine.sandbox import CallError, WorkerCall

VICTIMS = ["supdist-shim", "supdist-init", "python"]


@pytest.mark.timing
@pytest.mark.parametrize("victim", VICTIMS, ids=lambda victim: f"LC1-{victim}")
async def test_a_death_from_outside_is_told_within_two_seconds(arena: Arena, victim: str) -> None:
    running = asyncio.Event()

    async def begun(call: WorkerCall) -> list[str | CallError]:
        running.set()
        return ["begun"] * len(call.prompts)

    code = "import subprocess, time; subprocess.Popen(['sleep', '600']); worker('begun'); time.sleep(60)"
    others = set(_parts(arena, victim))
    async with arena.open(on_call=begun) as sandbox:
        task = asyncio.create_task(sandbox.execute(code))
        async with asyncio.timeout(5):
            await running.wait()
        (target,) = set(_parts(arena, victim)) - others
        started = time.monotonic()
        os.kill(target, signal.SIGKILL)
        try:
            result = await task
            assert result.state_lost
            assert result.outcome in (Outcome.CRASHED, Outcome.KILLED)
        except SandboxLost:
            pass
        assert time.monotonic() - started < 2
        with pytest.raises(SandboxLost):
            await sandbox.execute("1")
        await sandbox.reset()
        await assert_alive(sandbox)


def _parts(arena: Arena, name: str) -> list[int]:
    """Processes of this kind that serve sandboxes in use: not of one that is built ahead."""
    if name == "supdist-init" and not arena.machine.has_host_processes:
        return arena.machine.inits()
    found: list[int] = []
    for process in arena.machine.processes():
        with contextlib.suppress(psutil.NoSuchProcess):  # one of the sandbox before may be on its way out
            if process.name() == name and (name != "supdist-init" or _has_a_repl(process)):
                found.append(process.pid)
    return found


def _has_a_repl(init: psutil.Process) -> bool:
    return "python" in {child.name() for child in init.children()}


async def test_lc1_a_guest_that_destroys_its_own_programs_gets_a_result(arena: Arena) -> None:
    arena.most_seconds = 30
    async with arena.open() as sandbox:
        await timed(
            sandbox,
            "import subprocess; subprocess.run('rm -rf /bin /usr /lib /work /tmp /dev/shm', shell=True)",
            timeout=20,  # to walk through /usr is slow on a busy machine, and not what is judged
            within=22,
        )
        await timed(
            sandbox,
            "try:\n  for n in range(999): open(f'/tmp/{n}', 'wb').write(bytes(1 << 20))\n"
            "except OSError: pass",
        )
        result = await timed(
            sandbox, "import subprocess; print(subprocess.run(['echo', 'x'], capture_output=True).stdout)"
        )
    assert result.stdout == "b'x\\n'\n"


ENGINE = """
import asyncio
from supdist.engine import open_sandbox
async def main():
    async with open_sandbox(CONFIG) as one, open_sandbox(CONFIG) as two:
        print("busy", flush=True)
        code = "import subprocess; subprocess.Popen(['sleep', '600'])\\nwhile True: pass"
        await asyncio.gather(*(s.execute(code, timeout=600) for s in (one, two)))
asyncio.run(main())
"""


async def test_lc2_after_the_engines_death_nothing_is_left(arena: Arena, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        ENGINE.replace("CONFIG", arena.machine.source),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"busy\n"
    await asyncio.sleep(0.3)
    tree = await asyncio.to_thread(arena.machine.processes, process.pid)
    assert len(tree) >= (7 if arena.machine.has_host_processes else 5)
    process.kill()
    await process.wait()
    assert await comes_true(lambda: not any(child.is_running() for child in tree), 5)
    assert list(tmp_path.iterdir()) == []
    # Who is killed removes no group and no container; the next that starts does.
    await outside(
        f"from supdist.engine import SyncSandbox\n"
        f"with SyncSandbox({arena.machine.source}) as s: s.execute('1')"
    )
    assert await comes_true(lambda: arena.machine.is_swept(process.pid, tree), 5)


async def test_lc4_a_hundred_starts_at_once(arena: Arena) -> None:
    arena.most_seconds = 40
    arena.most_growth = 256 << 20

    async def one(number: int) -> str:
        async with arena.open(start_timeout=60.0, memory="64MiB") as sandbox:
            return (await sandbox.execute(f"print({number})", timeout=30)).stdout

    count = arena.machine.most_starts
    results = await asyncio.gather(*(one(number) for number in range(count)))
    assert results == [f"{number}\n" for number in range(count)]


# A user namespace that allows no more of one kind: the kernel refuses exactly that step.
FAULT = """
import asyncio, contextlib, json, os, tempfile, time
from supdist.engine.jail import syscalls as sc
uid, gid = os.geteuid(), os.getegid()
sc.unshare(sc.CLONE_NEWUSER | sc.CLONE_NEWNS)
open("/proc/self/setgroups", "w").write("deny")
open("/proc/self/uid_map", "w").write(f"0 {uid} 1")
open("/proc/self/gid_map", "w").write(f"0 {gid} 1")
limit = "/proc/sys/user/max_%s_namespaces"
if "FAULT" != "none": open(limit % "FAULT", "w").write("0")
import psutil
from supdist.engine import SandboxRuntime, SandboxUnavailable, open_sandbox
below = lambda: psutil.Process().children(recursive=True)
def is_dead(process):
    with contextlib.suppress(psutil.NoSuchProcess): return process.status() == "zombie"
async def say():
    try:
        async with open_sandbox() as sandbox:
            code = "print(1 + 1)\\ntry: open('RAN', 'w')\\nexcept OSError: pass"
            return (await sandbox.execute(code)).stdout
    except SandboxUnavailable as error: return [error.capability, error.remedy]
async def main():
    said = []
    async with contextlib.AsyncExitStack() as stack:
        with contextlib.suppress(SandboxUnavailable): await stack.enter_async_context(SandboxRuntime())
        for _ in range(3):
            said.append(await say())
            deadline = time.monotonic() + 5  # the next was built ahead, and its init has ended
            while "FAULT" == "cgroup" and not any(map(is_dead, below())):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
        if "FAULT" not in ("none", "mnt"):  # of which the zygote itself needs one
            open(limit % "FAULT", "w").write("1000")
            said.append(await say())
    return said
said = asyncio.run(main())
print(json.dumps([said, [p.name() for p in below()], os.listdir(tempfile.gettempdir())]))
"""
KINDS = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"]


@pytest.mark.parametrize("kind", ["none", *KINDS], ids=lambda kind: f"LC5-LC11-{kind}")
async def test_a_start_that_fails_half_way_says_where_and_leaves_nothing(
    arena: Arena, tmp_path: Path, kind: str
) -> None:
    """``none`` is the control: without a fault it starts. No weaker isolation is used instead."""
    ran, temporary = tmp_path / "ran", tmp_path / "temporary"
    temporary.mkdir()
    code = FAULT.replace("FAULT", kind).replace("RAN", str(ran))
    said, left, files = json.loads(await outside(code, timeout=60, TMPDIR=str(temporary)))
    assert (left, files) == ([], [])
    if kind == "none":
        assert said == ["2\n"] * 3
        return
    assert not ran.exists(), "no code ran"
    if kind != "mnt":
        assert said.pop() == "2\n", "nobody is told of what was so before"
    for capability, remedy in said:
        assert {"user": "User namespaces", "mnt": "namespace"}.get(
            kind, kind
        ).lower() in capability.lower(), said
        assert "No space left" in capability
        assert "max_" in remedy


async def test_lc6_a_cancelled_start_or_cell_leaks_nothing(arena: Arena, before: list[Held]) -> None:
    arena.most_seconds = 30
    dice = random.Random(6)

    async def use() -> None:
        async with arena.open() as sandbox:
            await sandbox.execute("import time; time.sleep(0.01)")
            await sandbox.reset()
            await sandbox.execute("print(1)")

    for _ in range(40):
        task = asyncio.create_task(use())
        await asyncio.sleep(dice.random() * 0.12)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, SandboxLost):
            await task
    held: list[Held] = []

    def nothing_is_left() -> bool:
        held.append(Held.now(arena.machine))
        return not held[-1].more_than(before[-1])

    assert await comes_true(nothing_is_left, 5 + arena.starts), held[-1].more_than(before[-1])


async def test_lc7_close_is_idempotent_and_final(arena: Arena) -> None:
    async with arena.open() as sandbox:
        task = asyncio.create_task(sandbox.execute("import time; time.sleep(60)"))
        await asyncio.sleep(0.2)
        await asyncio.gather(sandbox.close(), sandbox.close())
        result = await task
        assert (result.outcome, result.state_lost) == (Outcome.KILLED, True)
        await sandbox.close()
        for use in (sandbox.execute("1"), sandbox.reset()):
            with pytest.raises(SandboxError, match="closed"):
                await use
        await sandbox.interrupt()


async def test_lc11_a_measurement_that_lacks_a_wall_is_refused(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measurement itself is the fault here: the engine compares it and does not believe the plan."""
    from supdist.engine.sandbox.config import Isolation

    def one_wall(_: Isolation) -> list[str]:
        return ["a net namespace of its own"]

    monkeypatch.setattr(Isolation, "missing", one_wall)
    with pytest.raises(SandboxUnavailable, match="net namespace"):
        async with arena.open(isolation="strict"):
            pass


async def test_lc12_what_is_claimed_is_what_holds(arena: Arena) -> None:
    probe = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(json.dumps({
    "namespaces": {
        n: os.stat("/proc/self/ns/" + n).st_ino
        for n in os.listdir("/proc/self/ns") if not n.endswith("_for_children")
    },
    "network": any(
        not line.strip().startswith("lo:") for line in open("/proc/self/net/dev").read().splitlines()[2:]
    ),
    "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16) | int(status["CapPrm"], 16),
    "no_new_privs": status.get("NoNewPrivs", "").strip() == "1",
    "root_writable": " / / ro" not in open("/proc/self/mountinfo").read(),
    "seccomp": status.get("Seccomp", "").strip() == "2",
}))
"""
    async with arena.open() as sandbox:
        claimed = sandbox.isolation
        seen = json.loads((await timed(sandbox, probe)).stdout)
    own = {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in os.listdir("/proc/self/ns")}
    assert sorted(name for name, inode in seen.pop("namespaces").items() if own.get(name) != inode) == [
        *claimed.namespaces, *(["time"] if "time" in claimed.namespaces else [])
    ]  # fmt: skip
    for fact, value in seen.items():
        assert getattr(claimed, fact) == value, fact
    assert claimed.missing() == list(arena.machine.missing)
    here = json.loads(await outside(probe))
    assert here["network"] or here["root_writable"] or here["capabilities"], "measured outside, it is not so"


async def test_lc13_sandboxes_by_the_dozen_leave_everything_flat(arena: Arena) -> None:
    arena.most_seconds = 40
    zygote = psutil.Process(zygotes().pop())

    async def cycle(times: int) -> None:
        for _ in range(times):
            async with arena.open() as sandbox:
                assert (await sandbox.execute("print(1)")).stdout == "1\n"

    await cycle(10)
    held = await settled(arena.machine)
    memory, theirs, fds = psutil.Process().memory_info().rss, zygote.memory_info().rss, zygote.num_fds()
    await cycle(arena.machine.soak)
    assert await comes_true(lambda: not Held.now(arena.machine).more_than(held))
    assert psutil.Process().memory_info().rss - memory < 4 << 20
    assert zygote.memory_info().rss - theirs < 2 << 20
    assert await comes_true(lambda: zygote.num_fds() <= fds)
