"""Tests that need a Docker daemon with the sandbox image."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from typing import Any

from supdist.engine.sandbox.owner import current_owner

LEASE = "supdist.lease"

DAEMON_SOCKET = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")


def containers(docker: Any, lease: str | None = None) -> set[str]:
    """Containers of this process's sandboxes, or of another process's, running or not."""
    label = f"{LEASE}={lease or current_owner()}"
    return {found["Id"] for found in docker.api.containers(all=True, filters={"label": label})}


class Relay:
    """A proxy of the Docker daemon that a test can silence or stop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.is_silent = asyncio.Event()

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncGenerator[str]:
        """Serve on a port of this machine; what DOCKER_HOST is to be."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        finally:
            await self.die()

    async def die(self) -> None:
        """Close everything, as a daemon that is killed."""
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes = b""
    ) -> None:
        """A connection, of which the head was read."""
        theirs, ours = await asyncio.open_unix_connection(DAEMON_SOCKET)
        ours.write(head)
        self._writers |= {writer, ours}
        for source, target in ((reader, ours), (theirs, writer)):
            task = asyncio.create_task(self._pass_on(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.is_silent.is_set():
                    await asyncio.Event().wait()
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()
