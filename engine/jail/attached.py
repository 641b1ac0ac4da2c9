"""Read and write the stdio of a guest in a container."""

from __future__ import annotations

import socket

from .cgroups import Cgroup, CgroupV1, CgroupV2
from .setup_errors import SetupError

_MOST_READS = 64
_HEADER_BYTES = 8
_STDOUT = 1


class AttachedStream:
    """Stdin and stdout of a container, over one socket."""

    # Input goes as it is. Output comes in pieces: stream number, three zero bytes, u32 length big-endian,
    # data (Docker Engine API, "Attach to a container", stream format).

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._header = b""
        self._left = 0
        self._is_stdout = False

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """See ``socket.setblocking``."""
        self._sock.setblocking(flag)

    def send(self, data: bytes | memoryview) -> int:
        """See ``socket.send``."""
        return self._sock.send(data)

    def recv(self, size: int) -> bytes:
        """Return bytes of stdout; none at its end.

        Raises:
            BlockingIOError: there are none now.
        """
        # Bounded: what fills the container's stderr must not hold up the shim.
        for _ in range(_MOST_READS):
            data = self._sock.recv(size)
            if not data:
                return b""
            if written := self._stdout_of(data):
                return written
        raise BlockingIOError

    def close(self) -> None:
        """Close the socket."""
        # The daemon then closes the container's stdin.
        self._sock.close()

    def _stdout_of(self, data: bytes) -> bytes:
        # A piece or its header may arrive in parts. No length is allocated: `_left` only counts down.
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
    """A guest in a container, with the methods of ``IsolatedProcess``."""

    pid = None
    setup_fd = -1
    repl_stream = None

    def __init__(self, sock: socket.socket, groups: dict[str, str]) -> None:
        self.init_stream = AttachedStream(sock)
        self.cgroup = _cgroup(groups)

    def setup_error(self) -> SetupError | None:
        """Return None."""
        # The container runs already.
        return None

    def kill(self) -> None:
        """Close the stream."""
        # This ends the guest's init. Only the engine talks to the container daemon.
        self.init_stream.close()

    def remove_cgroup(self) -> None:
        """Do nothing."""
        # The daemon removes the group.


def _cgroup(groups: dict[str, str]) -> Cgroup | None:
    if not groups:
        return None
    return CgroupV1(groups) if "cpuacct" in groups else CgroupV2(groups)
