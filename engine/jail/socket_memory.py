"""Count the memory in a sandbox's sockets (sock_diag(7)), which belongs to no process."""

from __future__ import annotations

import socket
import struct

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_AND_DUMP = 0x301
_DONE, _ERROR = 3, 2
_EVERY_STATE = 0xFFFF_FFFF
_SHOW = 0x04 | 0x08 | 0x10 | 0x20
_PEER, _UNACCEPTED, _QUEUE, _MEMORY = 2, 3, 4, 5  # what _SHOW asks for
_LISTENING = 10
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, number, port
_UNIX = struct.Struct("=BBBxIII")  # unix_diag_msg: family, type, state, inode, cookie
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_READ_BYTES = 64 << 10
_REQUEST = _HEADER.pack(
    _HEADER.size + 24, _SOCK_DIAG_BY_FAMILY, _REQUEST_AND_DUMP, 1, 0
) + struct.pack(
    "=BBHIIIII", socket.AF_UNIX, 0, 0, _EVERY_STATE, 0, _SHOW, 0, 0
)  # fmt: skip
# The socket, its inode and file.
_SOCKET_BYTES = 2 << 10
# What a message of one byte takes.
_MESSAGE_BYTES = 1 << 10
# Of a queue of datagrams only the first is shown. It holds net.unix.max_dgram_qlen of them, and one more.
_DATAGRAMS = 11


def open_socket() -> socket.socket:
    """Return a socket that lists the Unix sockets of this network namespace.

    Raises:
        OSError: the kernel cannot (CONFIG_UNIX_DIAG).
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    try:
        SocketMemory(sock).count()
    except BaseException:
        sock.close()
        raise
    return sock


class SocketMemory:
    """The Unix sockets of a sandbox. It has no other that holds data: its network has no address."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def count(self) -> int:
        """Return the bytes in all sockets, also in those that no process has open.

        Raises:
            OSError: the kernel cannot list them.
        """
        self._sock.send(_REQUEST)
        total = 0
        while True:
            data = self._sock.recv(_READ_BYTES)
            at = 0
            while at + _HEADER.size <= len(data):
                length, kind = _HEADER.unpack_from(data, at)[:2]
                if kind == _DONE:
                    return total
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", data, at + _HEADER.size)[0]
                    raise OSError(code, "sock_diag")
                total += _socket_bytes(data, at + _HEADER.size, at + length)
                at += _align(length)


def _socket_bytes(data: bytes, at: int, end: int) -> int:
    # A message counts as its sender's. If the sender has closed its socket, only the reader's queue is left.
    _, kind_of_socket, state, *_ = _UNIX.unpack_from(data, at)
    at += _UNIX.size
    has_peer, queued, sent, most, closed = False, 0, 0, 0, 0
    while at + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if kind == _PEER:
            # The inode of a closed socket is 0.
            has_peer = struct.unpack_from("=I", data, at + _ATTRIBUTE.size) != (0,)
        elif kind == _UNACCEPTED:
            # Inodes of the clients. One that has closed its socket may have filled it before.
            inodes = struct.iter_unpack("=I", data[at + _ATTRIBUTE.size : at + length])
            closed = sum(not inode for (inode,) in inodes)
        elif kind == _QUEUE:
            (queued,) = struct.unpack_from("=I", data, at + _ATTRIBUTE.size)
        elif kind == _MEMORY:
            # rmem_alloc, rcvbuf, wmem_alloc, sndbuf (sock_diag(7)).
            _, _, sent, most = struct.unpack_from("=IIII", data, at + _ATTRIBUTE.size)
        at += _align(length)
    if state == _LISTENING:
        return _SOCKET_BYTES + queued * _SOCKET_BYTES + closed * most
    if has_peer or not queued:
        return _SOCKET_BYTES + sent
    if kind_of_socket == socket.SOCK_DGRAM:
        return _SOCKET_BYTES + sent + _DATAGRAMS * most
    return _SOCKET_BYTES + sent + min(queued * _MESSAGE_BYTES, max(most, queued))


def _align(length: int) -> int:
    return (length + 3) & ~3
