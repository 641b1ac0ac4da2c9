"""A session whose guest is a child process, for the image. The container isolates it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import protocol
from ..text import replace_surrogates
from . import processes
from .guest_process import GuestProcess
from .session import Cell, Files, SessionError, SessionLost

_CODE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What a cell may do."""

    # Bytes, for each of stdout and stderr.
    output: int = 16 << 20
    # Seconds from the interrupt to the kill.
    grace: float = 1.0


class LocalSession:
    """See ``Session``. One for each process, which must have no other children."""

    # The guest is another process so that its death does not end the server.

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder
        self._limits = _session_limits(limits)
        self._guest: GuestProcess | None = None
        self._closed = False

    async def start(self) -> LocalSession:
        """Start the first interpreter.

        Raises:
            SessionError: it does not start.
        """
        processes.adopt_orphans()
        await self._start_guest()
        return self

    async def execute(self, code: str, timeout: float) -> Cell:  # noqa: ASYNC109 - the guest's session keeps it
        """See ``Session.execute``."""
        source = replace_surrogates(code)
        size = len(source.encode())
        if size > _CODE_BYTES:
            raise SessionError(f"the code has {size} bytes; at most {_CODE_BYTES} are allowed")
        return await self._running_guest().execute(source, timeout)

    async def reset(self) -> None:
        """See ``Session.reset``. The folder keeps its files."""
        await self._end_guest()
        await self._start_guest()

    async def put(self, path: str, data: bytes) -> None:
        """See ``Session.put``."""
        await self._running_guest().files.put(path, data)

    async def get(self, path: str, most: int) -> bytes:
        """See ``Session.get``."""
        return await self._running_guest().files.get(path, most)

    async def list(self, most: int) -> Files:
        """See ``Session.list``."""
        found = await self._running_guest().files.list(most)
        return Files(found.files, found.more)

    async def close(self) -> None:
        """See ``Session.close``."""
        self._closed = True
        await self._end_guest()

    def _running_guest(self) -> GuestProcess:
        if self._guest is None:
            raise SessionLost("the Python process is gone")
        self._guest.check_running()
        return self._guest

    async def _start_guest(self) -> None:
        if self._closed:
            raise SessionError("the session is closed")
        self._guest = await GuestProcess.start(self._folder, self._limits)
        try:
            await self._guest.wait_ready()
        except BaseException:
            await self._end_guest()
            raise

    async def _end_guest(self) -> None:
        guest, self._guest = self._guest, None
        if guest is not None:
            await guest.end("the session was reset or closed")


def _session_limits(limits: Limits) -> protocol.SessionLimits:
    return protocol.SessionLimits(
        output_bytes=limits.output,
        result_bytes=protocol.result_bytes(limits.output),
        display_bytes=8 << 20,
        frame_bytes=16 << 20,
        prompt_bytes=1 << 20,
        batch=1024,
        pending_calls=8192,
        calls_per_second=10_000.0,
        # A cell's timeout is its limit: it waits for no worker.
        wall_seconds=1.0,
        grace_seconds=limits.grace,
        tools=0,
    )
