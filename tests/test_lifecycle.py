"""Whatever is killed, whenever: nothing is left, and whoever waits hears of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from process_support import (
    COMMAND,
    cgroups_of,
    descendants,
    guest_processes_named,
    processes_named,
    restore_sigint,
    zygotes,
)
from support import Open, eventually

from supdist.engine import (
    SandboxConfig,
    SandboxLost,
    SandboxRuntime,
    SandboxUnavailable,
    SyncSandbox,
    TaskError,
    open_sandbox,
)
from supdist.engine.jail.cgroups import CgroupBase
from supdist.engine.jail.rootfs import RootLayout
from supdist.engine.sandbox import zygote as zygote_module
from supdist.engine.sandbox.diagnostics import no_such_call, sandbox_unavailable_for

pytestmark = pytest.mark.anyio

BUSY_ENGINE = """
import asyncio
from supdist.engine import open_sandbox
async def main():
    async with open_sandbox() as sandbox:
        print("busy", flush=True)
        code = "import subprocess; subprocess.Popen(['sleep', '1000'])\\nwhile True: x = 1"
        await sandbox.execute(code, timeout=600)
asyncio.run(main())
"""


def is_running(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def wait_until_gone(pids: set[int], seconds: float) -> set[int]:
    deadline = time.monotonic() + seconds
    while pids and time.monotonic() < deadline:
        pids = {pid for pid in pids if is_running(pid)}
        time.sleep(0.02)
    return pids


def busy_engine(folder: Path) -> tuple[subprocess.Popen[str], set[int], dict[str, int]]:
    """An engine in the middle of a cell, every process below it, and those of the sandbox by their names."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY_ENGINE],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
        preexec_fn=restore_sigint,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for pid in descendants(process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(pid).name() == "sleep":
                    below = descendants(process.pid)
                    above = [parent for parent in psutil.Process(pid).parents() if parent.pid in below]
                    return process, below, {parent.name(): parent.pid for parent in above}
    raise AssertionError("the cell did not start its child")


@pytest.mark.parametrize("victim", ["engine", "supdist-zygote", "supdist-shim", "supdist-init", "python"])
def test_after_a_kill_of_any_process_nothing_is_left(victim: str, tmp_path: Path) -> None:
    engine, below, named = busy_engine(tmp_path)
    try:
        if victim == "engine":
            engine.kill()
        else:
            os.kill(named[victim], signal.SIGKILL)
        assert wait_until_gone(below, 5) == set()
        engine.wait(5)
        assert list(tmp_path.iterdir()) == [], "no socket, no directory"
    finally:
        engine.kill()
        engine.wait()
        if engine.stdout is not None:
            engine.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_when_all_are_told_to_end_no_control_group_is_left(number: signal.Signals, tmp_path: Path) -> None:
    """As when systemd stops a unit: every process gets the signal at once."""
    engine, below, named = busy_engine(tmp_path)
    zygote = named["supdist-zygote"]
    try:
        if CgroupBase.find() is not None:
            assert cgroups_of(zygote)
        for pid in (engine.pid, *below):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        assert wait_until_gone(below, 5) == set()
        assert cgroups_of(zygote) == []
    finally:
        engine.kill()
        engine.wait()
        if engine.stdout is not None:
            engine.stdout.close()


def test_a_child_that_the_engine_forked_does_not_keep_its_sandboxes_alive(tmp_path: Path) -> None:
    program = BUSY_ENGINE.replace(
        'print("busy"',
        'import os\n        if os.fork() == 0: os.execvp("sleep", ["sleep", "20"])\n        print("busy"',
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        assert engine.stdout.readline() == "busy\n"
        below = {pid: psutil.Process(pid).name() for pid in descendants(engine.pid)}
        engine.kill()
        ours = {pid for pid, name in below.items() if name.startswith("supdist-")}
        assert ours
        assert wait_until_gone(ours, 5) == set()
        for pid in below.keys() - ours:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_careful_umask_is_no_hindrance(umask: int, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    done = subprocess.run(
        [*COMMAND, "exec", "print(1)"],
        check=False, capture_output=True, text=True, umask=umask, env={**os.environ, "TMPDIR": str(deep)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert list(deep.iterdir()) == []


def test_ctrl_c_in_the_terminals_group_is_the_engines_alone(tmp_path: Path) -> None:
    engine, below, _ = busy_engine(tmp_path)
    try:
        engine.send_signal(signal.SIGINT)
        assert engine.wait(10) != 0
    finally:
        engine.kill()
    assert wait_until_gone(below, 5) == set()
    assert list(tmp_path.iterdir()) == []
    assert engine.stdout is not None
    engine.stdout.close()


async def test_while_a_sandbox_is_open_nothing_of_it_lies_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with open_sandbox() as sandbox:
        assert (await sandbox.execute("print(1)")).stdout == "1\n"
        assert list(tmp_path.iterdir()) == []


@pytest.mark.timing
@pytest.mark.parametrize("name", ["supdist-shim", "supdist-zygote"])
async def test_killed_machinery_is_an_exception_and_not_a_result(name: str) -> None:
    before = guest_processes_named(name) - processes_named("supdist-zygote")
    async with open_sandbox() as sandbox:
        running = asyncio.create_task(sandbox.execute("import time; time.sleep(60)"))
        await asyncio.sleep(0.1)
        (target,) = guest_processes_named(name) - before
        os.kill(target, signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(SandboxLost, match=r"killed by signal 9 \(SIGKILL\)"):
            await running
        assert time.monotonic() - started < 2
        with pytest.raises(SandboxLost, match="reset"):
            await sandbox.execute("1")
        await sandbox.reset()
        assert (await sandbox.execute("print('back')")).stdout == "back\n"


async def test_a_shim_that_does_not_keep_its_time_is_killed() -> None:
    before = guest_processes_named("supdist-shim")
    async with open_sandbox(SandboxConfig(wall=0.3, grace=0.1)) as sandbox:
        running = asyncio.create_task(sandbox.execute("import time; time.sleep(60)"))
        await asyncio.sleep(0)
        (target,) = guest_processes_named("supdist-shim") - before
        os.kill(target, signal.SIGSTOP)
        with pytest.raises(SandboxLost):
            await asyncio.wait_for(running, 60)
        assert not psutil.pid_exists(target)
        await sandbox.reset()
        assert (await sandbox.execute("print('back')")).stdout == "back\n"


async def test_nothing_is_left_of_a_sandbox_whose_context_is_refused(engine: SandboxRuntime) -> None:
    async def refused() -> None:
        with pytest.raises(TaskError, match="object of type"):
            async with open_sandbox(context=["x" * 100_000, object()]):
                pass

    async with open_sandbox():
        pass
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await refused()
    async with open_sandbox():  # the zygote takes orders in turn: those are forked, and told to end
        await eventually(lambda: len(processes_named("supdist-shim")) == 1, 3)
        await eventually(lambda: len(processes_named("supdist-init")) <= 1, 3)
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= descriptors, 3)


NARROW = """
import asyncio, json, os, psutil, sys, time
from supdist.engine import SandboxRuntime, SandboxUnavailable, open_sandbox
pids, said = sys.argv[1], []
def waits():  # the next sandbox, for its user: shim and init sleep, and both are called so
    below = psutil.Process().children(recursive=True)
    spares = [process for process in below if process.name() == "supdist-spare"]
    return len(spares) == 2 and all(process.status() == "sleeping" for process in spares)
async def main():
    async with SandboxRuntime(), open_sandbox() as kept:
        deadline = time.monotonic() + 10
        while not waits():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        with open(pids + "/pids.current") as file: now = int(file.read())
        for room in range(12):
            with open(pids + "/pids.max", "w") as file: file.write(str(now + room))
            try:
                async with open_sandbox() as sandbox:
                    said.append((await sandbox.execute("print('here')")).stdout)
            except SandboxUnavailable as error: said.append([error.capability, error.remedy])
        said.append((await kept.execute("print('still here')")).stdout)
asyncio.run(main())
print(json.dumps(said))
"""


def test_where_no_process_is_to_be_had_an_open_says_so_and_the_engine_goes_on() -> None:
    """Whichever of the three it is: there is room for one more with each try, until there is enough."""
    groups = CgroupBase.find()
    if groups is None:
        pytest.skip("this machine gives out no control groups")
    group = groups.create(f"{os.getpid()}-narrow")
    group.limit(SandboxConfig.model_validate({"memory": "8GiB", "pids": 1000}).resource_limits())
    pids = group._folders["pids"]  # pyright: ignore[reportPrivateUsage]  # the test looks at private state
    process = subprocess.Popen(
        [sys.executable, "-c", f"input()\n{NARROW}", pids],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        group.add(process.pid)
        output, _ = process.communicate("\n", timeout=60)
        *said, kept = json.loads(output)
        refused = [each for each in said if each != "here\n"]
        assert said[-1] == "here\n"
        assert kept == "still here\n"
        assert said[0] in refused
        for capability, remedy in refused:
            assert "A process for the sandbox cannot be started" in capability
            assert "ulimit -u" in remedy
    finally:
        process.kill()
        process.wait()
        group.remove()


async def test_a_guest_forks_as_any_process_does_and_shares_no_chance_with_another() -> None:
    """What modules do after a fork, the zygote keeps for the repl."""
    code = """
import os, random, threading
enough = threading.Event()
threading.Thread(target=enough.wait).start()
assert threading.active_count() == 2
if (child := os.fork()) == 0:
    os._exit(threading.active_count())
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
enough.set()
heard = []
os.register_at_fork(before=lambda: heard.append("before"), after_in_parent=lambda: heard.append("after"))
if (child := os.fork()) == 0: os._exit(0)
os.waitpid(child, 0)
print(heard, random.random())
"""
    said: list[str] = []
    for _ in range(2):
        async with open_sandbox() as sandbox:
            result = await sandbox.execute(code)
            assert result.error is None
            said.append(result.stdout)
    assert all(each.startswith("['before', 'after'] ") for each in said)
    assert said[0] != said[1]


async def test_all_sandboxes_of_a_loop_share_one_zygote() -> None:
    async def one() -> int:
        async with open_sandbox() as sandbox:
            await sandbox.execute("print(1)")
            return len(zygotes())

    assert set(await asyncio.gather(*(one() for _ in range(10)))) == {1}


async def test_cancelling_a_start_or_a_cell_at_any_moment_leaks_nothing(engine: SandboxRuntime) -> None:
    async def use() -> None:
        async with open_sandbox() as sandbox:
            await sandbox.execute("import time; time.sleep(0.01)")

    async with open_sandbox() as sandbox:  # so that the loop's own descriptors exist before the count
        await sandbox.execute("1")
    this = psutil.Process()
    descriptors, shims = this.num_fds(), len(processes_named("supdist-shim"))
    for turn in range(40):
        task = asyncio.create_task(use())
        await asyncio.sleep(turn * 0.0008)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, SandboxLost):
            await task
    await eventually(lambda: len(processes_named("supdist-shim")) <= shims, 3)
    await eventually(lambda: this.num_fds() <= descriptors, 3)


async def test_opening_and_closing_leaves_descriptors_threads_and_mounts_flat(small: Open) -> None:
    this = psutil.Process()

    async def cycle(times: int) -> None:
        for _ in range(times):
            async with small() as sandbox:
                assert (await sandbox.execute("print(1)")).stdout == "1\n"

    def held() -> tuple[int, int, int]:
        return this.num_fds(), this.num_threads(), len(Path("/proc/mounts").read_text().splitlines())

    await cycle(3)
    before = held()
    await cycle(30)
    await eventually(lambda: all(now <= then for now, then in zip(held(), before, strict=True)), 3)


def test_a_zygote_that_cannot_build_its_view_says_which_wall_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A real failure: a folder of the system is not where the order says."""
    real = zygote_module.rootfs.find_layout

    def with_a_folder_that_is_gone() -> RootLayout:
        layout = real()
        layout["binds"].append(["/nowhere", "/nowhere"])
        return layout

    monkeypatch.setattr(zygote_module.rootfs, "find_layout", with_a_folder_that_is_gone)
    with (
        pytest.raises(SandboxUnavailable, match="A mount namespace for the sandboxes cannot be built"),
        SyncSandbox(),
    ):
        pass


def test_remedies_name_the_capability_and_the_mend() -> None:
    import errno

    assert "user.max_user_namespaces" in sandbox_unavailable_for("user_namespace", errno.ENOSPC).remedy
    assert "Linux 5.12" in no_such_call((5, 11))
    assert "seccomp=unconfined" in no_such_call((5, 12))
    assert "chroot" in sandbox_unavailable_for("zygote_root", errno.EINVAL).remedy
    assert "user.max_.*_namespaces" in sandbox_unavailable_for("namespaces", errno.ENOSPC).remedy
    assert "ulimit -u" in sandbox_unavailable_for("fork", errno.EAGAIN).remedy
    assert "memory" in sandbox_unavailable_for("fork", errno.ENOMEM).remedy
    assert "aarch64" in sandbox_unavailable_for("processor", errno.ENOSYS).remedy
    assert sandbox_unavailable_for("user_namespace", errno.EPERM).capability.startswith(
        "User namespaces cannot be created"
    )
