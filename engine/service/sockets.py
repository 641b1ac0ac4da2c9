"""ZeroMQ sockets of a model server and its clients."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import contextmanager
from typing import cast

import zmq
import zmq.asyncio

from .protocol import MAX_BYTES

# A machine that is silent for so long counts as lost. The kernel reports the end of a process at once.
SILENCE_SECONDS = 6

_PROBE_SECONDS = 2


def open_socket(context: zmq.asyncio.Context, kind: int, address: str) -> zmq.asyncio.Socket:
    """Return a socket that limits the size of messages and detects a lost connection."""
    opened = context.socket(kind)
    opened.setsockopt(zmq.LINGER, 0)
    opened.setsockopt(zmq.IPV6, int("[" in address))
    opened.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
    # libzmq 4.3.5 aborts the process if a receive queue is full and its peer pings and dies. So the queue has
    # no limit, and the kernel sends the heartbeats.
    opened.setsockopt(zmq.RCVHWM, 0)
    opened.setsockopt(zmq.TCP_KEEPALIVE, 1)
    opened.setsockopt(zmq.TCP_KEEPALIVE_IDLE, _PROBE_SECONDS)
    opened.setsockopt(zmq.TCP_KEEPALIVE_INTVL, _PROBE_SECONDS)
    opened.setsockopt(zmq.TCP_KEEPALIVE_CNT, SILENCE_SECONDS // _PROBE_SECONDS - 1)
    opened.setsockopt(zmq.TCP_MAXRT, SILENCE_SECONDS * 1000)
    return opened


def send_now(to: zmq.asyncio.Socket, frames: Sequence[bytes]) -> None:
    """Send without waiting.

    Raises:
        zmq.Again: there is no room.
        zmq.ZMQError: the peer is gone (EHOSTUNREACH).
    """
    # With DONTWAIT the future is done when it is returned. A plain socket would consume the edge that tells
    # the event loop of incoming messages.
    sent = to.send_multipart(frames, zmq.DONTWAIT)  # pyright: ignore[reportUnknownMemberType]  # pyzmq's types are partial
    cast("asyncio.Future[object]", sent).result()


async def receive_frame(of: zmq.asyncio.Socket) -> zmq.Frame:
    """Return the next frame."""
    # A flood of ready frames must not block the event loop.
    await asyncio.sleep(0)
    return await of.recv(copy=False)


async def socket_events(monitor: zmq.asyncio.Socket) -> AsyncIterator[tuple[int, int]]:
    """Yield events of a monitored socket, each with a descriptor or error number."""
    while True:
        event, _ = await monitor.recv_multipart()
        yield struct.unpack("=Hi", event)


@contextmanager
def duplicated_socket(descriptor: int) -> Generator[socket.socket]:
    """Yield a socket on a copy of a descriptor of ZeroMQ.

    Raises:
        OSError: it is closed.
    """
    # ZeroMQ may close its descriptor at any time. The duplicate stays valid.
    copy = os.dup(descriptor)
    try:
        connection = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    with connection:
        yield connection
