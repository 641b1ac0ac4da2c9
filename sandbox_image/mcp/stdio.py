"""Serve one client over stdin and stdout."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from types import ModuleType
from typing import Any, NoReturn

from .session import Settings
from .session_queue import SessionQueue

INTERRUPTED = 130


def stopped_by_signal() -> asyncio.Future[int]:
    """Return a future of the exit status: 130 for SIGINT, 0 for SIGTERM."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()

    def stop(status: int) -> None:
        if not stopped.done():
            stopped.set_result(status)

    loop.add_signal_handler(signal.SIGINT, stop, INTERRUPTED)
    loop.add_signal_handler(signal.SIGTERM, stop, 0)
    return stopped


async def serve_stdio(queue: SessionQueue, settings: Settings, stopped: asyncio.Future[int]) -> int:
    """Serve until the client is gone or ``stopped`` has the exit status. Leaves the queue open.

    Returns:
        the exit status, for ``exit_now``.

    Raises:
        Exception: the session cannot be opened.
    """
    serving = asyncio.get_running_loop().create_task(_serve(queue, settings))
    tasks: list[asyncio.Future[Any]] = [serving, stopped]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if not serving.done():
        return stopped.result()
    serving.result()
    return 0


async def _serve(queue: SessionQueue, settings: Settings) -> None:
    queue.open_ahead()
    # The import takes a second, in which the session starts.
    sdk = await asyncio.to_thread(_import_sdk)
    await queue.opened()
    from .readable import ReadableMessages
    from .server import build

    server = build(queue, settings)
    async with sdk.stdio_server() as (read, write):
        messages = ReadableMessages(read, write)
        await server.run(messages, write, server.create_initialization_options())


def _import_sdk() -> ModuleType:
    from mcp.server import stdio

    from . import server

    assert server
    return stdio


def exit_now(status: int) -> NoReturn:
    """End the process without waiting for threads."""
    # A thread waits for a line on stdin. An ordinary exit would wait for it.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
