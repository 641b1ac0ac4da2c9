"""A sandbox as its user sees it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

from ...sandbox_image.text import replace_surrogates
from ..arguments import reject
from ..errors import CodeTooLong, SandboxError, SandboxFileError
from .config import CellResult, Isolation, Listing
from .running_cell import RunningCell
from .running_guest import DID_NOT_START, FindBackend, GuestSetup, Lost, RunningGuest

# A shim that reports no end of the cell for so long may be stopped, and would never report it.
_LATE_SECONDS = 10.0


class Sandbox:
    """One guest and its variables. ``open_sandbox`` makes it."""

    def __init__(self, find_backend: FindBackend, setup: GuestSetup, guest: RunningGuest) -> None:
        self._find_backend = find_backend
        self._setup = setup
        self._guest = guest
        self._changing = asyncio.Lock()
        self._is_closed = False

    @classmethod
    async def open(cls, find_backend: FindBackend, setup: GuestSetup) -> Sandbox:
        """Start a guest. Raises as ``RunningGuest.start``."""
        if setup.query is not None:
            setup = replace(setup, query=replace_surrogates(setup.query))
        return cls(find_backend, setup, await RunningGuest.start(find_backend, setup))

    @property
    def isolation(self) -> Isolation:
        """The isolation, as the guest measured it."""
        return self._guest.isolation

    async def execute(self, code: str, *, timeout: float | None = None) -> CellResult:  # noqa: ASYNC109 - the shim keeps it
        """Run a cell and return its result, also if its interpreter crashes.

        Args:
            code: Python source; its variables stay for later cells.
            timeout: seconds without waits; by default the config's.

        Raises:
            SandboxLost: the guest died earlier, or was killed from outside.
            SandboxError: another cell runs, or the sandbox is closed.
            TaskError: the code is no text, or the timeout no number.
            ValueError: the timeout is not positive.
            CodeTooLong: the code is too long; also a ValueError.
        """
        _check_types(code, timeout)
        timeout = self._setup.config.timeout if timeout is None else timeout
        self._check_open()
        if self._changing.locked():
            raise SandboxError("this sandbox is being reset; wait for the end of reset()")
        self._guest.check_idle()
        if not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
        return await self._run(self._checked_source(code), timeout)

    async def _run(self, source: str, timeout: float) -> CellResult:  # noqa: ASYNC109 - the shim keeps it
        guest = self._guest
        cell = guest.execute(source, timeout)
        try:
            # The shim keeps the timeout. This one is for a shim that does not.
            is_late = await self._is_late(cell, guest, timeout)
        except asyncio.CancelledError:
            await guest.stop_cell(cell)
            raise
        if is_late:
            await guest.abandon()
        return await cell.result

    async def _is_late(self, cell: RunningCell, guest: RunningGuest, timeout: float) -> bool:  # noqa: ASYNC109 - as above
        config, loop = self._setup.config, asyncio.get_running_loop()
        started, answered = loop.time(), guest.answering_seconds()
        while True:
            # The cell's clock stands still while its calls are answered; the wall clock does not.
            longest = min(timeout + guest.answering_seconds() - answered, config.wall)
            left = started + longest + config.grace - loop.time()
            if left <= 0:
                break
            done, _ = await asyncio.wait([cell.result], timeout=left)
            if done:
                return False
        # From here once more: if this event loop was busy for long, the shim's messages wait for it.
        done, _ = await asyncio.wait([cell.result], timeout=_LATE_SECONDS)
        return not done

    def _checked_source(self, code: str) -> str:
        most = self._setup.limits.frame_bytes // 2
        # Characters first: a huge text is refused before it is copied.
        if len(code) <= most:
            # A lone surrogate is no Python outside of a comment.
            source = replace_surrogates(code)
            if len(source.encode()) <= most:
                return source
        raise CodeTooLong(
            f"code of {len(code):,} characters is too long: at most {most:,} bytes can be sent. "
            "Put the data into the context or into a file, and read it with code"
        )

    async def interrupt(self) -> None:
        """Interrupt the cell; after the grace it is ``killed``."""
        self._guest.check_usable()
        self._guest.interrupt()

    async def put(self, path: str, data: bytes) -> None:
        """Write a file below /work and make its folders, also during a cell.

        Raises:
            SandboxFileError: the path is outside or through a file, or no room is left.
            SandboxLost, SandboxError: as ``execute``.
            TaskError: the path is no text, or the data is no bytes.
        """
        self._check_open()
        _check_path(path)
        _check_data(data)
        config = self._setup.config
        # The file system of /work is in the sandbox's memory.
        room = min(int(config.scratch), int(config.memory))
        if len(data) > room:
            raise SandboxFileError("no_room", path, room)
        await self._guest.files.put(path, bytes(data))

    async def get(self, path: str, *, max_bytes: int = 64 << 20) -> bytes:
        """Read a regular file below /work.

        Raises:
            SandboxFileError: missing, not regular, outside, or larger than ``max_bytes``.
            SandboxLost, SandboxError: as ``execute``.
            TaskError: the path is no text.
        """
        self._check_open()
        _check_path(path)
        # The bytes that arrive are counted: the size that the guest reports is its own word.
        return await self._guest.files.get(path, max_bytes)

    async def list(self, *, most: int = 1000) -> Listing:
        """List at most ``most`` regular files below /work.

        Raises:
            SandboxFileError: no answer in time.
            SandboxLost, SandboxError: as ``execute``.
        """
        self._check_open()
        found = await self._guest.files.list(most)
        return Listing(tuple(found.files), found.more)

    async def reset(self) -> None:
        """Kill the guest, dead or alive, and start a new one.

        Raises:
            SandboxError: the sandbox is closed, or a cell runs.
            SandboxUnavailable, SandboxLost, TaskError: as for the first start.
        """
        self._check_open()
        if self._guest.is_running:
            raise SandboxError("a cell is running in this sandbox; wait for its end, or interrupt it")
        async with self._changing:
            # A close() may have had the lock first.
            self._check_open()
            await self._guest.close()
            self._guest.state = Lost(DID_NOT_START)
            self._guest = await RunningGuest.start(self._find_backend, self._setup)

    async def close(self) -> None:
        """Kill the guest and remove all of it. May be repeated."""
        self._is_closed = True
        if not self.is_ours:
            # It is for the process that forked this one to close it.
            return
        async with self._changing:
            await self._guest.close()

    @property
    def is_ours(self) -> bool:
        """Whether this process opened it, and is not a fork of that one."""
        return self._guest.is_ours

    def check_usable(self) -> None:
        """Check that the caller is in the process and event loop that opened it.

        Raises:
            SandboxError: it is not.
        """
        self._guest.check_usable()

    def _check_open(self) -> None:
        if self._is_closed:
            raise SandboxError("this sandbox is closed; open another")
        self.check_usable()


def _check_types(code: object, timeout: object) -> None:
    if not isinstance(code, str):
        reject("code", code, "text")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float))):
        reject("timeout", timeout, "a number of seconds or None")


def _check_data(data: object) -> None:
    if not isinstance(data, bytes | bytearray | memoryview):
        reject("data", data, "bytes", "write TEXT.encode()" if isinstance(data, str) else "")


def _check_path(path: object) -> None:
    if not isinstance(path, str):
        reject("path", path, "text, relative to /work")
