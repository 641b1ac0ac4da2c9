"""Addresses of a model server, and access to its socket."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ..errors import TaskError

_PATH_BYTES = 107  # the kernel's, for a socket
_TCP = re.compile(r"tcp://(\[[0-9A-Fa-f:.%\w]+\]|[^/:@\[\]\s]+):(\d{1,5}|\*)")


def check_address(address: str, *, keys: bool) -> None:
    """Check the form of an address.

    Raises:
        TaskError: the form is wrong, or it is tcp without keys.
    """
    path = ipc_path(address)
    if path is not None:
        if path[:1] in ("", "@", "*") or len(os.fsencode(path)) > _PATH_BYTES:
            raise TaskError(f"{address}: an ipc address is ipc:// and a path of at most {_PATH_BYTES} bytes")
    elif not ((found := _TCP.fullmatch(address)) and int(found[2].replace("*", "0")) < 1 << 16):
        raise TaskError(f"{address!r} is no address of a broker service: write ipc://PATH or tcp://HOST:PORT")
    elif not keys:
        raise TaskError(
            f"{address}: tcp needs keys, or anyone could read and send requests: make them with "
            "`supdist-engine broker keygen DIR --client NAME`, and give --curve-keys DIR to the service and "
            "--curve-keys DIR/clients/NAME to its client"
        )


def ipc_path(address: str) -> str | None:
    """Return the path of an ipc address; None for tcp."""
    return address.removeprefix("ipc://") if address.startswith("ipc://") else None


async def resolve_host(address: str) -> str:
    """Return the address with its host as a number.

    Raises:
        OSError: the lookup failed.
    """
    if ipc_path(address) is not None:
        return address
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    # ZeroMQ's own lookup has no deadline.
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    # IPv4 first: a server that listens on both families is found there.
    found.sort(key=lambda each: each[0] != socket.AF_INET)
    number = found[0][4][0]
    return f"tcp://[{number}]:{port}" if found[0][0] == socket.AF_INET6 else f"tcp://{number}:{port}"


@contextmanager
def private_socket(path: str) -> Generator[None]:
    """Give a socket that is bound in this context mode 600.

    Raises:
        TaskError: others could replace the socket, or a server listens there.
    """
    folder = Path(path).parent
    try:
        # The last folder alone: a mistyped path must not make a tree.
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.stat()
        _check_free(path)
    except FileNotFoundError as error:
        raise TaskError(f"ipc://{path} cannot be used: the folder {folder.parent} does not exist") from error
    except OSError as error:
        raise TaskError(f"ipc://{path} cannot be used: {error}") from error
    is_foreign = status.st_uid not in (0, os.geteuid())
    if is_foreign or (status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX):
        raise TaskError(
            f"others may put their own socket in {folder}: choose a folder of your own, with mode 700"
        )
    # The mode must be right from the start: a later chmod would leave a gap.
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


# Only the socket of a killed server may be replaced.
def _check_free(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise TaskError(f"{path} exists and is not a socket: choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
    raise TaskError(f"a service listens at ipc://{path} already: end it, or choose another path")
