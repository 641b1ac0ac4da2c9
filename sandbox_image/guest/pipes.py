"""The pipes of a cell's fd 1 and 2, where they are read.

Every cell gets pipes of its own. What a process that outlives its cell still writes goes to the old pipes, which are
read to their end and thrown away, and never appears as a later cell's output.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import deque
from collections.abc import Generator
from typing import Literal

from .. import protocol

_PIPE_BYTES = 1 << 18
_OLD_PIPES = 16


class Pipes:
    """The reading ends of one cell's pipes, by the stream that each is.

    Args:
        owner: whose the pipes shall be, where that is not who makes them: ``/dev/stdout`` opens for its owner alone.
    """

    def __init__(self, owner: int | None = None) -> None:
        self._owner = owner
        self.streams: dict[int, Literal[1, 2]] = {}

    def make(self) -> list[int]:
        """New pipes; their writing ends, which are the caller's to close. There must be no others now.

        Raises:
            OSError: no pipe can be had. None is left.
        """
        assert not self.streams
        writers: list[int] = []
        try:
            for stream in (1, 2):
                reader, writer = os.pipe2(os.O_CLOEXEC)
                writers.append(writer)
                self.streams[reader] = stream
                os.set_blocking(reader, False)
                with contextlib.suppress(OSError):
                    # A user has so many pages for pipes; a small one works too.
                    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
                if self._owner is not None:
                    os.fchown(reader, self._owner, self._owner)
        except OSError:
            for fd in (*writers, *self.retire()):
                os.close(fd)
            raise
        return writers

    def read(self, fd: int) -> bytes | None:
        """A piece of what was written; None where there is nothing now. At its end nothing, and the pipe is gone."""
        data = read(fd)
        if data == b"":
            del self.streams[fd]
        return data

    def drain(self) -> Generator[tuple[Literal[1, 2], bytes]]:
        """What the pipes hold, in pieces; so often and no more, since a flood must not hold the cell's end back."""
        for fd, stream in list(self.streams.items()):
            for _ in range(_PIPE_BYTES // protocol.READ_BYTES + 1):
                data = self.read(fd)
                if not data:
                    break
                yield stream, data

    def retire(self) -> list[int]:
        """Those of them that have not come to their end, which are the caller's now."""
        readers, self.streams = list(self.streams), {}
        return readers


class OldPipes:
    """Pipes that outlived their cells. Of more than a few the oldest are closed, and who writes there gets EPIPE."""

    def __init__(self) -> None:
        self._fds: deque[int] = deque()

    def __contains__(self, fd: int) -> bool:
        return fd in self._fds

    def add(self, fd: int) -> int | None:
        """Take one; the one that was closed for it, if any."""
        self._fds.append(fd)
        if len(self._fds) <= _OLD_PIPES:
            return None
        oldest = self._fds.popleft()
        os.close(oldest)
        return oldest

    def discard(self, fd: int) -> bool:
        """Throw a piece away; whether that was its end, and it is closed."""
        if read(fd) != b"":
            return False
        self._fds.remove(fd)
        return True


def read(fd: int) -> bytes | None:
    """A piece of what is there; None where there is nothing now. At its end nothing, and it is closed."""
    try:
        data = os.read(fd, protocol.READ_BYTES)
    except BlockingIOError:
        return None
    if not data:
        os.close(fd)
    return data
