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


async def serve_stdio(queue: SessionQueue, settings: Settings) -> int:
    """Serve until the client hangs up, or a signal asks for the end. The owner of the queue closes it.

    Returns:
        the exit status: 130 after Ctrl-C, else 0. End the process with ``leave``.

    Raises:
        Exception: what opening the session raised; nothing was served then.
    """
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[int] = loop.create_future()

    def ask(status: int) -> None:
        if not asked.done():
            asked.set_result(status)

    loop.add_signal_handler(signal.SIGINT, ask, INTERRUPTED)
    loop.add_signal_handler(signal.SIGTERM, ask, 0)
    serving = loop.create_task(_serve(queue, settings))
    both: list[asyncio.Future[Any]] = [serving, asked]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if not serving.done():
        return asked.result()
    serving.result()
    return 0


async def _serve(queue: SessionQueue, settings: Settings) -> None:
    queue.open_ahead()
    sdk = await asyncio.to_thread(_import_sdk)  # a second, in which the session starts
    await queue.opened()
    from .server import build

    server = build(queue, settings)
    async with sdk.stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def _import_sdk() -> ModuleType:
    from mcp.server import stdio

    from . import server

    assert server
    return stdio


def leave(status: int) -> NoReturn:
    """End the process now: a thread that waits for a line on stdin would hold an ordinary end up."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
