"""A guest that a container daemon runs: its stdio, as the daemon multiplexes it, is all that a shim has of it.

The walls are the container's. What ends it is the daemon, which only the engine speaks to; closing the stream ends a
guest's init, too.
"""

from __future__ import annotations

import socket

from .cgroups import Cgroup, CgroupV1, CgroupV2
from .setup_errors import SetupError

_HEADER_BYTES = 8
_STDOUT = 1


class AttachedStream:
    """The stdin and stdout of a container without a terminal, over one socket that was attached to it.

    What goes there goes as it is. What comes is cut into pieces, each with a header: the stream's number, three bytes
    of nothing and the piece's length, big-endian (Docker Engine API, "Attach to a container", stream format).
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._header = b""
        self._left = 0
        self._is_stdout = False

    def fileno(self) -> int:
        """The socket's descriptor, to wait on."""
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """See ``socket.setblocking``."""
        self._sock.setblocking(flag)

    def send(self, data: bytes | memoryview) -> int:
        """See ``socket.send``."""
        return self._sock.send(data)

    def recv(self, size: int) -> bytes:
        """What the guest wrote; empty at its end.

        Raises:
            BlockingIOError: there is nothing of it now.
        """
        while data := self._sock.recv(size):
            if written := self._cut(data):
                return written
        return b""

    def close(self) -> None:
        """Close this end; the daemon closes the container's stdin then."""
        self._sock.close()

    def _cut(self, data: bytes) -> bytes:
        """What of these bytes belongs to stdout."""
        pieces: list[bytes] = []
        at = 0
        while at < len(data):
            if not self._left:
                missing = _HEADER_BYTES - len(self._header)
                self._header += data[at : at + missing]
                at += missing
                if len(self._header) == _HEADER_BYTES:
                    self._is_stdout = self._header[0] == _STDOUT
                    self._left = int.from_bytes(self._header[4:], "big")
                    self._header = b""
                continue
            piece = data[at : at + self._left]
            at += len(piece)
            self._left -= len(piece)
            if self._is_stdout:
                pieces.append(piece)
        return b"".join(pieces)


class AttachedContainer:
    """A guest in a container, as ``isolated_process.IsolatedProcess`` is one behind walls of ours."""

    pid = None
    setup_fd = -1
    repl_stream = None

    def __init__(self, sock: socket.socket, groups: dict[str, str]) -> None:
        self.init_stream = AttachedStream(sock)
        self.cgroup = _cgroup(groups)

    def setup_error(self) -> SetupError | None:
        """The container runs, or there were no stream."""
        return None

    def kill(self) -> None:
        """Let go of it: its init ends with the stream."""
        self.init_stream.close()

    def remove_cgroup(self) -> None:
        """Its daemon's business."""


def _cgroup(groups: dict[str, str]) -> Cgroup | None:
    if not groups:
        return None
    return CgroupV1(groups) if "cpuacct" in groups else CgroupV2(groups)
