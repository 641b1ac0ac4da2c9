"""A session whose guest is a child process, for the image. The container isolates it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import protocol
from ..text import has_surrogates, replace_surrogates
from . import processes
from .guest_process import GuestProcess
from .session import FILE_PROBLEMS, Cell, FileRefused, Files, SessionError, SessionLost

_FILE_CHUNK = 1 << 20
_CODE_BYTES = 8 << 20
_PATH_CHARS = 1000


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
        for start in range(0, max(1, len(data)), _FILE_CHUNK):
            piece = data[start : start + _FILE_CHUNK]

            def message(number: int, piece: bytes = piece, append: bool = start > 0) -> protocol.PutFile:
                return protocol.PutFile(number, path, piece, append)

            await self._request_file(path, message)

    async def get(self, path: str, most: int) -> bytes:
        """See ``Session.get``."""
        data = b""
        while True:
            # One byte above the limit shows that a file is too large.
            offset, size = len(data), min(_FILE_CHUNK, most - len(data) + 1)

            def message(number: int, offset: int = offset, size: int = size) -> protocol.GetFile:
                return protocol.GetFile(number, path, offset, size)

            piece = await self._request_file(path, message)
            data += piece
            if len(data) > most:
                raise _refused(path, "too_large")
            if len(piece) < size:
                return data

    async def list(self, most: int) -> Files:
        """See ``Session.list``."""
        answer = await self._request(".", lambda number: protocol.ListFiles(number, most))
        assert isinstance(answer, protocol.FileList)
        return Files(answer.files, answer.more)

    async def close(self) -> None:
        """See ``Session.close``."""
        self._closed = True
        await self._end_guest()

    async def _request_file(
        self, path: str, request: Callable[[int], protocol.PutFile | protocol.GetFile]
    ) -> bytes:
        if "\0" in path or len(path) > _PATH_CHARS or has_surrogates(path):
            raise _refused(path, "outside")
        answer = await self._request(path, request)
        assert isinstance(answer, protocol.FileData)
        if answer.error is not None:
            raise _refused(path, answer.error)
        return answer.data

    async def _request(
        self, path: str, request: Callable[[int], protocol.PutFile | protocol.GetFile | protocol.ListFiles]
    ) -> protocol.FileData | protocol.FileList:
        try:
            return await self._running_guest().request_file(request)
        except TimeoutError:
            raise _refused(path, "io") from None

    def _running_guest(self) -> GuestProcess:
        if self._guest is None:
            raise SessionLost("the Python process is gone")
        if self._guest.lost is not None:
            raise SessionLost(f"the Python process is gone ({self._guest.lost})")
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


def _refused(path: str, code: protocol.FileCode) -> FileRefused:
    return FileRefused(f"{path!r}: {FILE_PROBLEMS[code]}")
