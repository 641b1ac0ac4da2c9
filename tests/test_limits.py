"""Limits and what is told of them, over every backend: memory, processes, time, files, calls."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support import Open, echo

from supdist.engine import Outcome, SandboxConfig, SandboxFileError, SandboxLost
from supdist.engine.sandbox import CallError, WorkerCall
from supdist.sandbox_image import protocol

pytestmark = pytest.mark.anyio


def _refused(backend: dict[str, Any]) -> Outcome:
    """How a cell ends that came up against the limit on processes. gVisor tells nobody but the guest."""
    return Outcome.USER_ERROR if backend.get("runtime") == "runsc" else Outcome.RESOURCE_LIMIT


async def test_one_large_allocation_is_an_error_that_keeps_the_state(small: Open) -> None:
    async with small() as sandbox:
        await sandbox.execute("kept = 1")
        result = await sandbox.execute("b'x' * (1 << 34)")
        after = await sandbox.execute("print(kept)")
    assert result.outcome is Outcome.USER_ERROR
    assert result.error is not None
    assert result.error.type == "MemoryError"
    assert after.stdout == "1\n"


@pytest.mark.not_over(
    "docker-runsc",
    reason="CI's runsc is configured with --ignore-cgroups, so that nothing is limited or counted",
)
async def test_a_tree_that_needs_too_much_together_is_oom(small: Open) -> None:
    """Eight children of 64 MiB each: every one is below the limit of 256 MiB, all of them are not."""
    code = """
import os, time
print('before', flush=True)
for _ in range(8):
    if os.fork() == 0:
        held = bytearray(64 << 20)
        for at in range(0, len(held), 4096): held[at] = 1
        time.sleep(30)
        os._exit(0)
for _ in range(8): os.wait()
"""
    async with small() as sandbox:
        result = await sandbox.execute(code)
        assert (result.outcome, result.state_lost, result.stdout) == (Outcome.OOM, True, "before\n"), result
        with pytest.raises(SandboxLost):
            await sandbox.execute("1")
        await sandbox.reset()
        assert (await sandbox.execute("print('fresh')")).stdout == "fresh\n"


async def test_a_child_that_is_killed_for_memory_is_oom_and_a_kill_of_ones_own_is_not(small: Open) -> None:
    async with small() as sandbox:
        own = await sandbox.execute(
            "import subprocess, signal\nprint(subprocess.run(['sh', '-c', 'kill -9 $$']).returncode)"
        )
    assert (own.outcome, own.stdout) == (Outcome.OK, "-9\n")


async def test_a_fork_bomb_meets_its_limit_and_says_so(small: Open, backend: dict[str, Any]) -> None:
    code = "import os, time\nwhile True:\n    if os.fork() == 0:\n        time.sleep(30)\n        os._exit(0)"
    async with small(pids=16) as sandbox:
        result = await sandbox.execute(code)
    assert result.outcome is _refused(backend)
    assert result.error is not None
    assert result.error.type == "BlockingIOError"


async def test_a_thread_bomb_meets_it_too(small: Open, backend: dict[str, Any]) -> None:
    code = (
        "import threading\nstop = threading.Event()\n"
        "while True: threading.Thread(target=stop.wait, daemon=True).start()"
    )
    async with small(pids=16) as sandbox:
        result = await sandbox.execute(code)
    assert result.outcome is _refused(backend)


@pytest.mark.timing
async def test_processor_time_is_limited_and_told(small: Open) -> None:
    async with small(cpu_seconds=1, timeout=30.0) as sandbox:
        busy = await sandbox.execute(
            "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
        )
        over = await sandbox.execute("while True: x = 1")
    assert 0.2 < busy.usage.cpu_seconds < 0.6 or busy.usage.source == "none"
    assert over.outcome in (Outcome.RESOURCE_LIMIT, Outcome.KILLED)
    assert "SIGXCPU" in over.detail or "SIGKILL" in over.detail


@pytest.mark.not_over(
    "docker-runsc",
    reason="CI's runsc is configured with --ignore-cgroups, so that nothing is limited or counted",
)
async def test_use_is_counted_and_labelled(small: Open) -> None:
    async with small() as sandbox:
        result = await sandbox.execute("x = bytearray(50 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1")
        idle = await sandbox.execute("import time; time.sleep(0.05)")
    assert result.usage.source in ("cgroup", "watchdog")
    assert 50 << 20 <= result.usage.peak_memory < 256 << 20
    assert idle.usage.cpu_seconds < 0.05


@pytest.mark.not_over(
    "docker-runsc", reason="gVisor counts no files of a scratch; attack FS9 fills it with bytes"
)
async def test_scratch_space_ends_and_the_session_does_not(small: Open) -> None:
    code = """
written = 0
try:
    with open('/work/f', 'wb') as file:
        while True: written += file.write(bytes(1 << 20))
except OSError as error:
    print(error.errno, written <= 64 << 20)
import os
os.remove('/work/f')
names = 0
try:
    while True: open(f'/tmp/{names}', 'w').close(); names += 1
except OSError as error:
    print(error.errno, names < 20_000)
"""
    async with small(scratch="16MiB") as sandbox:
        result = await sandbox.execute(code)
        assert (await sandbox.execute("print('alive')")).stdout == "alive\n"
    assert result.stdout == "28 True\n28 True\n"


async def test_too_many_open_files_are_the_cells_error(small: Open) -> None:
    async with small(open_files=64, on_call=echo) as sandbox:
        result = await sandbox.execute("held = []\nwhile True: held.append(open('/dev/null'))")
        after = await sandbox.execute("held.clear(); print(worker('alive'))")
    assert result.error is not None
    assert result.error.type == "OSError"
    assert after.stdout == "ALIVE\n"


async def test_a_batch_is_sent_to_its_end_while_the_first_answers_come(small: Open) -> None:
    """The shim stops reading once enough waits for the guest, so the guest must read while it cannot send."""
    asked = 0

    async def at_length_at_first(call: WorkerCall) -> list[str | CallError]:
        nonlocal asked
        asked += 1
        return ["y" * (36_000 if asked <= 2 else 1)] * len(call.prompts)

    async with small(on_call=at_length_at_first, memory="1GiB") as sandbox:
        result = await sandbox.execute("print(len(worker_batch(['p' * 4000] * 256 * 31)))", timeout=60)
    assert result.stdout == f"{256 * 31}\n", result
    assert asked == 31


async def test_files_that_are_asked_for_all_at_once_go_one_after_another(
    small: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More would wait than the shim reads with, or than a container's init has memory for."""
    piece, most = bytes(1 << 20), 0

    def counted(message: protocol.ToShim) -> None:
        nonlocal most
        most = max(most, len(files._waiting))  # pyright: ignore[reportPrivateUsage]  # the test looks at private state
        send(message)

    async with small(scratch="64MiB") as sandbox:
        await sandbox.put("large", piece)
        files = sandbox._guest.files  # pyright: ignore[reportPrivateUsage]  # the test looks at private state
        send = files._send  # pyright: ignore[reportPrivateUsage]  # the test looks at private state
        monkeypatch.setattr(files, "_send", counted)
        puts = [sandbox.put(f"{number}", piece) for number in range(24)]
        arrived = await asyncio.gather(*(sandbox.get("large") for _ in range(24)), sandbox.list(), *puts)
        assert (await sandbox.execute("print('alive')")).stdout == "alive\n"
    assert arrived[:24] == [piece] * 24
    assert most == 1


async def test_a_guest_that_calls_too_often_is_slowed_down_and_not_refused(small: Open) -> None:
    async with small(on_call=echo, calls_per_second=100.0) as sandbox:
        result = await sandbox.execute("print({worker('x') for _ in range(150)})")
    assert result.stdout == "{'X'}\n"
    assert result.elapsed > 0.4


@pytest.mark.parametrize(
    "absurd",
    [
        {"memory": "1KiB"}, {"memory": "-1"}, {"pids": 0}, {"cpus": 0.0}, {"timeout": float("nan")},
        {"open_files": 1}, {"scratch": 0}, {"output": "1TiB"}, {"prompt": "1GiB"}, {"batch": 0},
        {"calls_per_second": -1.0}, {"grace": 0.0}, {"pids": "8"}, {"unknown": 1},
    ],
)  # fmt: skip
def test_absurd_limits_are_refused(absurd: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(absurd))):
        SandboxConfig.model_validate(absurd)


async def test_files_go_in_and_come_out(small: Open) -> None:
    async with small() as sandbox:
        await sandbox.put("a/b c.bin", bytes(range(256)) * 10_000)
        result = await sandbox.execute(
            "import os; print(os.path.getsize('a/b c.bin')); open('out', 'w').write('é')"
        )
        assert result.stdout == "2560000\n"
        assert await sandbox.get("a/b c.bin") == bytes(range(256)) * 10_000
        assert await sandbox.get("out") == "é".encode()
        await sandbox.put("out", b"")
        assert await sandbox.get("out") == b""


async def test_only_regular_files_below_the_working_directory_are_touched(small: Open) -> None:
    code = """
import os, socket
os.symlink('/etc/passwd', 'link'); os.symlink('/tmp', 'folder_link'); os.mkfifo('pipe'); os.mkdir('folder')
os.symlink('nowhere', 'dangling')
socket.socket(socket.AF_UNIX).bind('socket')
open('plain', 'w').write('x' * 100)
"""
    refused = {
        "link": "not_regular", "folder_link/x": "not_regular", "pipe": "not_regular", "folder": "not_regular",
        "dangling": "not_regular", "socket": "not_regular", "plain/x": "not_regular",
        "../x": "outside", "/etc/passwd": "outside", "a/../../x": "outside", "": "outside", "a\0b": "outside",
        "\ud800": "outside", "x" * 2000: "outside", "none": "not_found", "none/x": "not_found",
    }  # fmt: skip
    async with small() as sandbox:
        await sandbox.execute(code)
        for path, why in refused.items():
            with pytest.raises(SandboxFileError) as caught:
                await sandbox.get(path)
            assert caught.value.code == why, path
            if why != "not_found":
                with pytest.raises(SandboxFileError):
                    await sandbox.put(path, b"y")
        with pytest.raises(SandboxFileError, match="more than 99 bytes; raise max_bytes"):
            await sandbox.get("plain", max_bytes=99)
        assert await sandbox.get("plain", max_bytes=100) == b"x" * 100
        left = await sandbox.execute("print(open('plain').read() == 'x' * 100, os.path.exists('nowhere'))")
    assert left.stdout == "True False\n"


async def test_a_sparse_file_is_refused_by_the_bytes_that_it_would_give(small: Open) -> None:
    async with small() as sandbox:
        await sandbox.execute("open('sparse', 'wb').truncate(60 << 20)")
        with pytest.raises(SandboxFileError) as caught:
            await sandbox.get("sparse", max_bytes=1 << 20)
        assert caught.value.code == "too_large"
        with pytest.raises(SandboxFileError) as caught:
            await sandbox.put("too much", bytes(65 << 20))
        assert caught.value.code == "no_room"
        await sandbox.execute("open('much', 'wb').write(bytes(60 << 20))")
        with pytest.raises(SandboxFileError) as caught:
            await sandbox.put("too much beside it", bytes(10 << 20))
        assert caught.value.code == "io"
        assert (await sandbox.execute("print('alive')")).stdout == "alive\n"
