"""Make and read the pipes of a cell's fd 1 and 2."""

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
    """The reading ends of one cell's pipes; ``streams`` maps each to 1 or 2."""

    def __init__(self, owner: int | None = None) -> None:
        self._owner = owner
        self.streams: dict[int, Literal[1, 2]] = {}

    def make(self) -> list[int]:
        """Make two pipes; return their writing ends.

        Raises:
            OSError: a pipe cannot be made; none is left.
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
                    # Beyond pipe-user-pages-soft the kernel refuses (pipe(7)). A small pipe works too.
                    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
                if self._owner is not None:
                    # /dev/stdout leads to /proc/self/fd/1, which opens for its owner only.
                    os.fchown(reader, self._owner, self._owner)
        except OSError:
            for fd in (*writers, *self.retire()):
                os.close(fd)
            raise
        return writers

    def read(self, fd: int) -> bytes | None:
        """Read a piece; see ``read``."""
        data = read(fd)
        if data == b"":
            del self.streams[fd]
        return data

    def drain(self) -> Generator[tuple[Literal[1, 2], bytes]]:
        """Read what the pipes hold now."""
        for fd, stream in list(self.streams.items()):
            # Bounded: a writer that never stops must not delay the end of the cell.
            for _ in range(_PIPE_BYTES // protocol.READ_BYTES + 1):
                data = self.read(fd)
                if not data:
                    break
                yield stream, data

    def retire(self) -> list[int]:
        """Give up the open pipes."""
        readers, self.streams = list(self.streams), {}
        return readers


# A process that outlives its cell writes to the old pipes, which are read and discarded. So its output never
# appears in a later cell.
class OldPipes:
    """Pipes still open after their cells."""

    def __init__(self) -> None:
        self._fds: deque[int] = deque()

    def __contains__(self, fd: int) -> bool:
        return fd in self._fds

    def add(self, fd: int) -> int | None:
        """Add a pipe; return the one closed for it, if any."""
        self._fds.append(fd)
        if len(self._fds) <= _OLD_PIPES:
            return None
        # Its writers get EPIPE.
        oldest = self._fds.popleft()
        os.close(oldest)
        return oldest

    def discard(self, fd: int) -> bool:
        """Discard a piece; return whether the pipe has ended."""
        if read(fd) != b"":
            return False
        self._fds.remove(fd)
        return True


def read(fd: int) -> bytes | None:
    """Read a piece; None for nothing now, b"" for the end, which closes ``fd``."""
    try:
        data = os.read(fd, protocol.READ_BYTES)
    except BlockingIOError:
        return None
    if not data:
        os.close(fd)
    return data
