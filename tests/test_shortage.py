"""No descriptors, memory, processes or room: an open says so, what is open goes on, and later opens work.

Each program has real limits, in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from supdist.engine import SandboxUnavailable
from supdist.engine.sandbox.diagnostics import translate_shortage

# Opens under a limit, with a zygote that runs (`warm`) or without one; then without the limit.
SHORT = """
import asyncio, contextlib, json, os, resource, sys, time
import psutil
from supdist.engine import SandboxConfig, SandboxRuntime, SandboxUnavailable, open_sandbox
kind, value, warm, size = json.loads(sys.argv[1])
kind = getattr(resource, kind)
def lowest():
    fd = os.dup(0)
    os.close(fd)
    return fd
async def use(context=""):
    async with open_sandbox(context=context) as sandbox:
        return (await sandbox.execute("print(len(context))")).stdout
async def refused():
    try: return await use("x" * size)
    except SandboxUnavailable as error: return [error.capability, error.remedy]
async def main():
    async with contextlib.AsyncExitStack() as stack:
        kept = await stack.enter_async_context(open_sandbox()) if warm else None
        # Once before, so that all modules are imported.
        await use()
        held = psutil.Process().num_fds()
        soft, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (value + (lowest() if kind == resource.RLIMIT_NOFILE else 0), hard))
        started = time.monotonic()
        said, seconds = await refused(), time.monotonic() - started
        still = (await kept.execute("print('kept')")).stdout if kept else "kept\\n"
        resource.setrlimit(kind, (soft, hard))
        await asyncio.sleep(0.2)
        return said, seconds, still, psutil.Process().num_fds() - held, await use()
said = asyncio.run(main())
print(json.dumps([*said, [child.name() for child in psutil.Process().children(recursive=True)]]))
"""


def short_of(kind: str, value: int, *, warm: bool, size: int = 0, before: str = "") -> list[Any]:
    """Return what an open under a limit raised or gave."""
    done = subprocess.run(
        [sys.executable, "-c", f"{before}\n{SHORT}", json.dumps([kind, value, warm, size])],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said, seconds, still, leaked, again, left = json.loads(done.stdout)
    assert seconds < 5
    assert still == "kept\n", "what is open goes on"
    assert leaked <= 0
    assert again == "0\n", "with room, the next open works"
    assert left == []
    return said


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("room", [0, 2, 4])
def test_without_descriptors_an_open_says_so(room: int, warm: bool) -> None:
    capability, remedy = short_of("RLIMIT_NOFILE", room, warm=warm)
    assert "Too many open files" in capability
    assert "ulimit -n" in remedy


def test_an_open_that_finds_no_memory_says_so() -> None:
    with (
        pytest.raises(SandboxUnavailable, match=r"Cannot allocate memory.*ulimit -v"),
        translate_shortage("The sandbox cannot be opened"),
    ):
        raise MemoryError


@pytest.mark.parametrize("megabytes", [18, 22])
def test_without_memory_for_a_zygote_an_open_says_so(megabytes: int) -> None:
    capability, remedy = short_of("RLIMIT_AS", megabytes << 20, warm=False)
    assert "The process that forks sandboxes did not start" in capability
    assert "Error" in capability
    assert "memory" in remedy


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without other processes")
@pytest.mark.parametrize("room", [0, 1, 2])
def test_without_processes_an_ordinary_users_open_says_so(room: int) -> None:
    """No other process is this user's."""
    before = f"import os; os.setgroups([]); os.setresuid({54000 + room}, {54000 + room}, {54000 + room})"
    capability, remedy = short_of("RLIMIT_NPROC", 1 + room, warm=False, before=before)
    assert "Resource temporarily unavailable" in capability
    assert "ulimit -u" in remedy


def test_files_of_no_size_hinder_only_the_context() -> None:
    capability, remedy = short_of("RLIMIT_FSIZE", 0, warm=True, size=10)
    assert "File too large" in capability
    assert "ulimit -f" in remedy


BARE = """
import os
from supdist.engine.jail import syscalls as sc
uid, gid = os.geteuid(), os.getegid()
sc.unshare(sc.CLONE_NEWUSER | sc.CLONE_NEWNS)
open("/proc/self/setgroups", "w").write("deny")
open("/proc/self/uid_map", "w").write(f"0 {uid} 1")
open("/proc/self/gid_map", "w").write(f"0 {gid} 1")
for folder in ("/dev/shm", "/var/tmp", os.environ["TMPDIR"]):
    sc.mount("none", folder, "tmpfs", sc.MS_RDONLY, "mode=0555")
from supdist.engine import SyncSandbox
with SyncSandbox(context="text") as sandbox: print(sandbox.execute("print(context)").stdout, end="")
"""


def test_where_no_folder_can_be_written_sandboxes_open(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BARE],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (0, "text\n"), done.stderr
