"""The machinery of sandboxes under faults: what is killed, stopped, used up or forked."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from process_support import processes_named, program, zygotes

from supdist.engine import SandboxConfig, SandboxLost, SandboxRuntime, open_sandbox

pytestmark = pytest.mark.anyio


def stop(pid: int) -> None:
    """Stop a process, and wait until the kernel says so."""
    os.kill(pid, signal.SIGSTOP)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        pass


ONE_CELL = """
from supdist.engine import SyncSandbox
with SyncSandbox(context="text") as sandbox: print(sandbox.execute("print(context)").stdout, end="")
"""


KILLED = """
import sys
from supdist.engine import SyncSandbox
print("ready", flush=True)
with SyncSandbox() as sandbox:
    while True: sandbox.execute("1")
"""


def test_an_engine_that_is_killed_at_any_moment_leaves_nothing(tmp_path: Path) -> None:
    dice = random.Random(19)
    for _ in range(6):
        engine = subprocess.Popen(
            [sys.executable, "-c", KILLED],
            stdout=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        assert engine.stdout is not None
        with engine.stdout:
            engine.stdout.readline()
            # As long as a start takes, and the first cells.
            time.sleep(dice.random() * 0.4)
            below = psutil.Process(engine.pid).children(recursive=True)
            engine.kill()
            engine.wait()
        assert psutil.wait_procs(below, 5)[1] == []
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["missing", "read-only"])
def test_an_open_needs_no_temporary_folder(place: str, tmp_path: Path) -> None:
    folder = tmp_path if place == "read-only" else tmp_path / "missing"
    tmp_path.chmod(0o555)
    done = program(ONE_CELL, TMPDIR=str(folder))
    tmp_path.chmod(0o755)
    assert (done.returncode, done.stdout) == (0, "text\n"), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_open_after_a_zygotes_death_or_stop_succeeds(number: signal.Signals) -> None:
    async with SandboxRuntime():
        (zygote,) = zygotes()
        if number == signal.SIGSTOP:
            stop(zygote)
        else:
            os.kill(zygote, number)
        async with asyncio.timeout(10), open_sandbox() as sandbox:
            assert (await sandbox.execute("print(1)")).stdout == "1\n"
        assert zygotes() != {zygote}
        assert len(zygotes()) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_an_open_whose_zygote_dies_or_stops_meanwhile_succeeds(number: signal.Signals) -> None:
    async with SandboxRuntime():
        (zygote,) = zygotes()
        # Stopped, it takes the order and does nothing about it.
        stop(zygote)
        opening = open_sandbox()
        task = asyncio.ensure_future(opening.__aenter__())
        await asyncio.sleep(0)
        os.kill(zygote, number)
        async with asyncio.timeout(15):
            sandbox = await task
            assert (await sandbox.execute("print(1)")).stdout == "1\n"
            await opening.__aexit__(None, None, None)
        assert zygote not in zygotes()


async def test_a_sandbox_of_a_dead_zygote_is_lost_until_its_reset_also_after_the_next_open() -> None:
    async with open_sandbox() as old:
        (zygote,) = zygotes()
        os.kill(zygote, signal.SIGKILL)
        async with open_sandbox() as new:
            assert (await new.execute("print(1)")).stdout == "1\n"
            with pytest.raises(SandboxLost, match="reset"):
                await old.execute("1")
            await old.reset()
            assert (await old.execute("print(1)")).stdout == "1\n"


async def test_sandboxes_of_a_stopped_zygote_go_on_and_are_closed_with_it() -> None:
    async with SandboxRuntime():
        (zygote,) = zygotes()
        async with open_sandbox() as old:
            stop(zygote)
            async with open_sandbox() as new:
                for sandbox in (old, new):
                    assert (await sandbox.execute("print(1)")).stdout == "1\n"
            assert zygote in zygotes(), "its sandbox is in use"
        async with open_sandbox():
            assert zygote not in zygotes()
    assert zygotes() == set()
    assert processes_named("supdist-shim") == set()


async def test_a_cell_whose_shim_is_stopped_ends_by_its_own_time_and_not_by_the_wall() -> None:
    config = SandboxConfig(timeout=0.3, grace=0.1, wall=3600)
    async with open_sandbox(config) as sandbox:
        (shim,) = processes_named("supdist-shim")
        running = asyncio.ensure_future(sandbox.execute("import time; time.sleep(60)"))
        await asyncio.sleep(0)
        stop(shim)
        with pytest.raises(SandboxLost):
            await asyncio.wait_for(running, 30)
        await sandbox.reset()
        assert (await sandbox.execute("print(1)")).stdout == "1\n"


async def test_a_shim_that_dies_while_its_zygote_is_stopped_is_noticed() -> None:
    async with open_sandbox() as sandbox:
        (zygote,), (shim,) = zygotes(), processes_named("supdist-shim")
        running = asyncio.ensure_future(sandbox.execute("import time; time.sleep(60)"))
        await asyncio.sleep(0)
        stop(zygote)
        os.kill(shim, signal.SIGKILL)
        with pytest.raises(SandboxLost):
            await asyncio.wait_for(running, 10)


UNCLOSED = {
    "by hand": "sandbox = SyncSandbox().__enter__(); print(sandbox.execute('1').outcome)",
    "in a stack": "stack = ExitStack(); print(stack.enter_context(SyncSandbox()).execute('1').outcome)",
    "with an exception in flight": "sandbox = SyncSandbox().__enter__(); print('ok', flush=True); 1 / 0",
    "in a thread": """
def use():
    global sandbox
    sandbox = SyncSandbox().__enter__()
    print(sandbox.execute("1").outcome)
thread = threading.Thread(target=use); thread.start(); thread.join()""",
    "while a cell runs": """
sandbox = SyncSandbox().__enter__(); print("ok", flush=True)
threading.Thread(target=sandbox.execute, args=("while True: pass",), daemon=True).start()""",
    "in a child of multiprocessing": """
def use():
    sandbox = SyncSandbox().__enter__()
    print(sandbox.execute("1").outcome, flush=True)
child = multiprocessing.get_context("fork").Process(target=use); child.start(); child.join()""",
}


@pytest.mark.parametrize("how", UNCLOSED)
def test_a_sandbox_that_nobody_closes_does_not_keep_the_interpreter_from_its_end(how: str) -> None:
    imports = "import multiprocessing, os, threading\nfrom contextlib import ExitStack\n"
    code = f"{imports}from supdist.engine import SyncSandbox\n{UNCLOSED[how]}"
    done = program(code, 20, PYTHONWARNINGS="default")
    assert done.stdout == "ok\n", done.stderr
    assert ("ZeroDivisionError" in done.stderr) == bool(done.returncode) == ("exception" in how)
    assert "Warning" not in done.stderr


def test_a_sandbox_that_is_garbage_is_closed_and_one_that_a_thread_uses_after_main_is_not() -> None:
    code = """
import gc, threading, time, psutil
from supdist.engine import SyncSandbox
sandbox = None
def count(): return len(psutil.Process().children(recursive=True))
with SyncSandbox(): pass
# The zygote stays, with the guest that it built ahead.
kept = count()
for _ in range(3): sandbox = SyncSandbox().__enter__()
assert count() > kept
sandbox = None
gc.collect()
deadline = time.monotonic() + 10
while count() > kept: assert time.monotonic() < deadline; time.sleep(0.02)
def use():
    with SyncSandbox() as sandbox:
        threading.main_thread().join()
        print(sandbox.execute("1").outcome)
threading.Thread(target=use).start()
"""
    done = program(code)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


# The child leaves with `sys.exit`, so that blocks, finalizers and exit functions run in it.
SYNC_FORK = """
import os, sys
from supdist.engine import SandboxError, SyncSandbox
with SyncSandbox() as sandbox:
    if (child := os.fork()) == 0:
        try: sandbox.execute("1")
        except SandboxError as error: print(error, flush=True)
        with SyncSandbox() as own: print(own.execute("1").outcome, flush=True)
        sys.exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sandbox.execute("1").outcome)
"""
ASYNC_FORK = """
import asyncio, os, sys
from supdist.engine import SandboxError, SandboxRuntime, open_sandbox
async def main():
    async with SandboxRuntime(), open_sandbox() as sandbox:
        if (child := os.fork()) == 0:
            for use in (sandbox.execute("1"), sandbox.put("a", b""), sandbox.reset(), sandbox.interrupt()):
                try: await use
                except SandboxError as error: print(error, flush=True)
            try:
                async with open_sandbox(): pass
            except SandboxError as error: print(error, flush=True)
            sys.exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), (await sandbox.execute("1")).outcome)
        await sandbox.reset()
        print((await sandbox.execute("1")).outcome)
asyncio.run(main())
"""


def test_a_fork_may_not_touch_its_parents_sandbox_and_does_not_disturb_it() -> None:
    refusal = "this sandbox was opened by another process; open another in this one"
    done = program(SYNC_FORK, 20, PYTHONWARNINGS="default")
    assert (done.stdout.splitlines(), done.stderr) == ([refusal, "ok", "7 ok"], "")
    done = program(ASYNC_FORK, 20, PYTHONWARNINGS="default")
    *refused, new, parent, after = done.stdout.splitlines()
    assert (refused, parent, after, done.stderr) == ([refusal] * 4, "7 ok", "ok", "")
    assert new == "no event loop of this process runs here; in a forked child, start one with asyncio.run()"


DROPPED = """
import asyncio, gc, os, time, psutil
from supdist.engine import SandboxError, SandboxRuntime, open_sandbox
def held(): return len(psutil.Process().children(recursive=True)), psutil.Process().num_fds()
async def leave_open():
    runtime, opening = SandboxRuntime(), open_sandbox()
    await runtime.__aenter__()
    sandbox = await opening.__aenter__()
    await sandbox.execute("1")
    asyncio.get_running_loop().kept = kept = [runtime, opening, sandbox]
    return kept
async def use():
    async with open_sandbox() as sandbox: return (await sandbox.execute("1")).outcome
def frees(seconds=3):
    deadline = time.monotonic() + seconds
    while held() != before and time.monotonic() < deadline: time.sleep(0.02)
    assert held() == before, held()
asyncio.run(use())
before = held()
"""
DROPPED_WAYS = {
    "asyncio.run ended": """
kept = asyncio.run(leave_open())
frees()
""",
    "the loop is garbage": """
loop = asyncio.new_event_loop()
loop.run_until_complete(leave_open())
loop.close()
del loop
gc.collect()
frees()
""",
    "the loop was closed": """
loop = asyncio.new_event_loop()
kept = loop.run_until_complete(leave_open())
loop.close()
assert held() != before
asyncio.run(use())
frees()
async def touch():
    try: await kept[2].execute("1")
    except SandboxError as error: assert "another event loop" in str(error)
    else: raise AssertionError
asyncio.run(touch())
""",
    "the process ends": """
loop = asyncio.new_event_loop()
kept = loop.run_until_complete(leave_open())
loop.close()
""",
    "again and again": """
async def runtime_alone():
    async with SandboxRuntime(): pass
for _ in range(5): asyncio.run(runtime_alone())
gc.collect()
frees()
assert not [each for each in gc.get_objects() if isinstance(each, asyncio.AbstractEventLoop)]
""",
}


@pytest.mark.parametrize("how", DROPPED_WAYS)
def test_an_event_loop_that_is_dropped_frees_its_sandboxes(how: str) -> None:
    done = program(DROPPED + DROPPED_WAYS[how], PYTHONWARNINGS="default")
    assert (done.returncode, done.stderr) == (0, "")
