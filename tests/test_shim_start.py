"""A shim that starts does not wait for the engine, and its end is told."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from supdist.engine import open_sandbox
from supdist.engine.sandbox.diagnostics import describe_exit

BUSY_SECONDS = 5.5


async def test_an_event_loop_that_is_busy_for_five_seconds_kills_no_sandbox() -> None:
    async def keep_busy() -> None:
        # The shim is forked, and waits for the handshake.
        time.sleep(BUSY_SECONDS)

    async with open_sandbox():  # then the zygote is there
        opening = asyncio.ensure_future(open_and_run())
        await asyncio.sleep(0)
        await keep_busy()
        assert await opening == "here\n"


async def open_and_run() -> str:
    async with open_sandbox() as sandbox:
        return (await sandbox.execute("print('here')")).stdout


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (signal.SIGKILL, "the sandbox's shim was killed by signal 9 (SIGKILL)"),
        (signal.SIGSEGV | 0x80, "the sandbox's shim was killed by signal 11 (SIGSEGV)"),
        (60, "the sandbox's shim was killed by signal 60"),
        (0, "the sandbox ended"),
        (70 << 8, "the sandbox's shim failed with exit status 70"),
    ],
)
def test_the_end_of_a_shim_is_told_by_its_status(status: int, text: str) -> None:
    assert describe_exit(status) == text
    assert os.WIFSIGNALED(status) == ("killed" in text)
