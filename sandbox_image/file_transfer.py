"""Copies files into and out of a guest, a frame at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from . import protocol
from .text import has_surrogates

_ANSWER_SECONDS = 30.0
_CHUNK_BYTES = 1 << 20
_PATH_CHARS = 1000

_Request: TypeAlias = protocol.PutFile | protocol.GetFile | protocol.ListFiles
_Answer: TypeAlias = protocol.FileData | protocol.FileList


class FileTransfer:
    """The file requests of one guest.

    Args:
        send: sends a request to the guest's session.
        check_usable: raises if the guest has ended.
        refusal: makes the error for a code, a path, and the limit that a too large file passes.
    """

    def __init__(
        self,
        limits: protocol.SessionLimits,
        send: Callable[[protocol.ToShim], None],
        check_usable: Callable[[], None],
        refusal: Callable[[protocol.FileCode, str, int], Exception],
    ) -> None:
        self._chunk_bytes = min(_CHUNK_BYTES, limits.frame_bytes // 2)
        self._refusal = refusal
        self._send = send
        self._check_usable = check_usable
        # One request at a time: neither side ever holds more of them than it sends on.
        self._turn = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[_Answer]] = {}
        self._number = 0

    async def put(self, path: str, data: bytes) -> None:
        """Write a file."""
        size = self._chunk_bytes
        # At least one request, which makes an empty file.
        for start in range(0, max(1, len(data)), size):

            def request(number: int, start: int = start) -> protocol.PutFile:
                return protocol.PutFile(number, path, data[start : start + size], start > 0)

            await self._request_data(path, request)

    async def get(self, path: str, max_bytes: int) -> bytes:
        """Read a file of at most ``max_bytes``."""
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
                raise self._refusal("too_large", path, max_bytes)
            if len(piece) < size:
                return b"".join(pieces)

    async def list(self, most: int) -> protocol.FileList:
        """Name at most ``most`` files."""
        answer = await self._request(".", lambda number: protocol.ListFiles(number, most))
        assert isinstance(answer, protocol.FileList)
        return answer

    def receive(self, answer: _Answer) -> None:
        """Deliver an answer to its request."""
        # None if the request has timed out.
        waiting = self._waiting.get(answer.request)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def fail(self, error: Exception) -> None:
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
            raise self._refusal(answer.error, path, 0)
        return answer.data

    async def _request(self, path: str, request: Callable[[int], _Request]) -> _Answer:
        if "\0" in path or len(path) > _PATH_CHARS or has_surrogates(path):
            raise self._refusal("outside", path, 0)
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
                raise self._refusal("io", path, 0) from None
            finally:
                self._waiting.pop(number, None)
