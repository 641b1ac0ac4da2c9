"""The machinery of sandboxes under faults: what is killed, stopped, used up or forked."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from process_support import processes_named, zygotes

from supdist.engine import SandboxRuntime, open_sandbox

pytestmark = pytest.mark.anyio


def program(code: str, seconds: float = 60.0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, **environment},
    )


def stop(pid: int) -> None:
    """Stop a process, and wait until the kernel says so."""
    os.kill(pid, signal.SIGSTOP)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        pass


ONE_CELL = """
from supdist.engine import SyncSandbox
with SyncSandbox(context="text") as sandbox: print(sandbox.execute("print(context)").stdout, end="")
"""


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
