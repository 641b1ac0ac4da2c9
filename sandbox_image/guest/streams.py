"""Byte streams between init and the shim."""

from __future__ import annotations

import os
import socket


class Stream:
    """A byte stream over two blocking descriptors."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader = reader
        self.writer = writer

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._reader

    def recv(self, size: int) -> tuple[bytes, list[int]]:
        """Read bytes, none at the end, and the descriptors with them."""
        return os.read(self._reader, size), []

    def sendall(self, data: bytes) -> None:
        """Write everything."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.writer, view) :]

    def close(self) -> None:
        """Close both directions."""
        for fd in {self._reader, self.writer}:
            os.close(fd)


class SocketStream(Stream):
    """A byte stream over a Unix socket, with descriptors (unix(7))."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, fd)
        self._socket = socket.socket(fileno=fd)

    def recv(self, size: int) -> tuple[bytes, list[int]]:
        """See ``Stream.recv``."""
        data, descriptors, _, _ = socket.recv_fds(self._socket, size, 2)
        return data, descriptors

    def close(self) -> None:
        """See ``Stream.close``."""
        self._socket.close()
