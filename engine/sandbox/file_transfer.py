"""Copies files into and out of a guest, a frame at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from ...sandbox_image import protocol
from ...sandbox_image.text import has_surrogates
from ..errors import SandboxError, SandboxFileError
from .config import Listing, SandboxConfig

_ANSWER_SECONDS = 30.0
_CHUNK_BYTES = 1 << 20
_PATH_CHARS = 1000

_Request: TypeAlias = protocol.PutFile | protocol.GetFile | protocol.ListFiles
_Answer: TypeAlias = protocol.FileData | protocol.FileList


class FileTransfer:
    """The file requests of one guest.

    Args:
        check_usable: raises if the guest has ended.
    """

    def __init__(
        self,
        config: SandboxConfig,
        send: Callable[[protocol.ToShim], None],
        check_usable: Callable[[], None],
    ) -> None:
        self._chunk_bytes = min(_CHUNK_BYTES, config.session_limits().frame_bytes // 2)
        self._send = send
        self._check_usable = check_usable
        # One request at a time: neither side ever holds more of them than it sends on.
        self._turn = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[_Answer]] = {}
        self._number = 0

    async def put(self, path: str, data: bytes) -> None:
        """See ``Sandbox.put``."""
        size = self._chunk_bytes
        # At least one request, which makes an empty file.
        for start in range(0, max(1, len(data)), size):

            def request(number: int, start: int = start) -> protocol.PutFile:
                return protocol.PutFile(number, path, data[start : start + size], start > 0)

            await self._request_data(path, request)

    async def get(self, path: str, max_bytes: int) -> bytes:
        """See ``Sandbox.get``."""
        pieces: list[bytes] = []
        read = 0
        while True:
            # One byte more than allowed: it shows that the file is too large.
            size = min(self._chunk_bytes, max_bytes - read + 1)

            def request(number: int, offset: int = read, size: int = size) -> protocol.GetFile:
                return protocol.GetFile(number, path, offset, size)

            piece = await self._request_data(path, request)
            pieces.append(piece)
            read += len(piece)
            if read > max_bytes:
                raise SandboxFileError("too_large", path, max_bytes)
            if len(piece) < size:
                return b"".join(pieces)

    async def list(self, most: int) -> Listing:
        """See ``Sandbox.list``."""
        answer = await self._request(".", lambda number: protocol.ListFiles(number, most))
        assert isinstance(answer, protocol.FileList)
        return Listing(tuple(answer.files), answer.more)

    def receive(self, answer: _Answer) -> None:
        """Deliver an answer to its request."""
        # None if the request has timed out.
        waiting = self._waiting.get(answer.request)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def fail(self, error: SandboxError) -> None:
        """Fail every waiting request."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(error)

    async def _request_data(
        self, path: str, request: Callable[[int], protocol.PutFile | protocol.GetFile]
    ) -> bytes:
        answer = await self._request(path, request)
        assert isinstance(answer, protocol.FileData)
        if answer.error is not None:
            raise SandboxFileError(answer.error, path)
        return answer.data

    async def _request(self, path: str, request: Callable[[int], _Request]) -> _Answer:
        if "\0" in path or len(path) > _PATH_CHARS or has_surrogates(path):
            raise SandboxFileError("outside", path)
        async with self._turn:
            self._check_usable()
            self._number += 1
            number, answer = self._number, asyncio.get_running_loop().create_future()
            self._waiting[number] = answer
            try:
                self._send(request(number))
                async with asyncio.timeout(_ANSWER_SECONDS):
                    return await answer
            except TimeoutError:
                raise SandboxFileError("io", path) from None
            finally:
                self._waiting.pop(number, None)
