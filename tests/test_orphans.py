"""What a killed process of the jail leaves, while those around it cannot or need not clean up."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from process_support import alive, cgroups_of, descendants, guest_processes_named, processes_named, zygotes
from support import eventually

from supdist.engine import SandboxLost, SandboxRuntime, open_sandbox
from supdist.engine.jail.cgroups import CgroupBase
from supdist.engine.sandbox.zygote import ZygoteClient

pytestmark = pytest.mark.anyio

ENGINE = """
import asyncio
from supdist.engine import open_sandbox
async def main():
    async with open_sandbox() as sandbox:
        print("open", flush=True)
        await sandbox.execute("import time; time.sleep(600)", timeout=600)
asyncio.run(main())
"""


@contextmanager
def sleeping_engine(folder: Path) -> Generator[int]:
    """An engine in the middle of a cell; what is below it must be gone in the end, too."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENGINE],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    below: set[int] = set()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        below = descendants(process.pid)
        yield process.pid
    finally:
        process.kill()
        process.communicate()
        for pid in alive(below):
            os.kill(pid, signal.SIGKILL)


def guest_of(engine: int) -> tuple[int, int, int]:
    """The shim, the init and the repl of an engine's only open sandbox."""
    (shim,) = processes_named("supdist-shim", engine)
    (init,) = [child.pid for child in psutil.Process(shim).children()]
    (repl,) = [child.pid for child in psutil.Process(init).children()]
    return shim, init, repl


async def test_a_shim_dies_with_its_zygote_though_the_engine_hangs(tmp_path: Path) -> None:
    """PR_SET_PDEATHSIG: the engine's socket stays open, so nothing else would end the shim."""
    with sleeping_engine(tmp_path) as engine:
        guest = set(guest_of(engine))
        os.kill(engine, signal.SIGSTOP)
        (zygote,) = processes_named("supdist-zygote", engine)
        os.kill(zygote, signal.SIGKILL)
        await eventually(lambda: alive(guest) == set(), 5)


async def test_a_guest_dies_with_its_shim_though_its_init_hangs(tmp_path: Path) -> None:
    """PR_SET_PDEATHSIG: a stopped init does not see that its shim has hung up."""
    with sleeping_engine(tmp_path) as engine:
        shim, init, repl = guest_of(engine)
        os.kill(init, signal.SIGSTOP)
        os.kill(shim, signal.SIGKILL)
        await eventually(lambda: alive({init, repl}) == set(), 5)


async def test_a_sandbox_that_waits_for_its_user_dies_with_its_shim_though_it_hangs(tmp_path: Path) -> None:
    def spares(engine: int) -> set[int]:
        return set(processes_named("supdist-spare", engine))

    with sleeping_engine(tmp_path) as engine:
        # The shim, and the init that it has built.
        await eventually(lambda: len(spares(engine)) == 2)
        waiting = spares(engine)
        (zygote,) = processes_named("supdist-zygote", engine)
        (shim,) = (pid for pid in waiting if psutil.Process(pid).ppid() == zygote)
        (init,) = waiting - {shim}
        os.kill(init, signal.SIGSTOP)
        os.kill(shim, signal.SIGKILL)
        await eventually(lambda: alive({init}) == set(), 5)


@pytest.mark.parametrize("victim", ["supdist-shim", "supdist-init", "supdist-spare"])
async def test_the_control_groups_of_a_killed_sandbox_are_removed_while_its_engine_goes_on(
    engine: SandboxRuntime, victim: str
) -> None:
    async with open_sandbox() as goes_on:
        assert (await goes_on.execute("x = 1")).error is None
        others = guest_processes_named("supdist-shim")
        async with open_sandbox() as killed:
            assert (await killed.execute("x = 1")).error is None
            (zygote,) = zygotes()
            shims = guest_processes_named("supdist-shim") - others
            if victim == "supdist-spare":
                # The sandbox that it builds has its name until it runs.
                waiting = processes_named("supdist-spare")
                shims = {pid for pid in waiting if psutil.Process(pid).ppid() == zygote}
            (shim,) = shims

            def groups() -> list[Path]:
                return [each for each in cgroups_of(zygote) if each.name == f"supdist-{zygote}-{shim}"]

            if CgroupBase.find() is not None:
                await eventually(lambda: bool(groups()))
            target = shim if victim != "supdist-init" else psutil.Process(shim).children()[0].pid
            os.kill(target, signal.SIGKILL)
            if victim == "supdist-shim":
                with pytest.raises(SandboxLost):
                    await killed.execute("x")
            await eventually(lambda: not groups(), 5)
        assert (await goes_on.execute("print(x)")).stdout == "1\n"


async def test_law_5_a_cancelled_start_of_a_zygote_leaves_no_group() -> None:
    """The event loop stands still from the start of the zygote until that has built a sandbox ahead."""
    if CgroupBase.find() is None:
        pytest.skip("there are no control groups here")
    before = {child.pid for child in psutil.Process().children()}
    starting = asyncio.ensure_future(ZygoteClient.start(None))
    await asyncio.sleep(0)
    (zygote,) = {child.pid for child in psutil.Process().children()} - before
    deadline = time.monotonic() + 20
    while not cgroups_of(zygote):
        assert time.monotonic() < deadline
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert cgroups_of(zygote) == []
