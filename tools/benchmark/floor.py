"""The machine's floor: the time of a round trip to another process, mostly that of waking a processor.

A worker call makes one round trip over each transport, so it cannot take less than both together.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager

import zmq

from .subjects import Scale, Subject, Trial

_MESSAGE = b"x" * 64
_TIMEOUT_MS = 20_000


class Floor(Subject):
    """Round trips over a socketpair, and over ZeroMQ."""

    name = "this machine"

    def trial(self, metric: str, scale: Scale) -> AbstractContextManager[Trial] | None:
        """See ``Subject.trial``."""
        return _floor(scale.of(300, 100)) if metric == "floor" else None


@contextmanager
def _floor(count: int) -> Generator[Trial]:
    with _socketpair() as over_sockets, _zeromq() as over_zeromq:
        yield lambda: {
            "socketpair": _round_trip_us(over_sockets, count),
            "ZeroMQ, ipc, DEALER and ROUTER": _round_trip_us(over_zeromq, count),
        }


def _round_trip_us(round_trip: Callable[[], None], count: int) -> float:
    found: list[float] = []
    for _ in range(count):
        start = time.perf_counter()
        round_trip()
        found.append(time.perf_counter() - start)
    return statistics.median(found) * 1e6


@contextmanager
def _socketpair() -> Generator[Callable[[], None]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(_TIMEOUT_MS / 1000)
    with ours, _echo("socketpair", str(theirs.fileno()), keep=theirs.fileno()):
        theirs.close()

        def round_trip() -> None:
            ours.sendall(_MESSAGE)
            if not ours.recv(len(_MESSAGE)):
                raise RuntimeError("the echo process ended before it answered; its stderr is above")

        # The first one waits for the other process to start.
        round_trip()
        yield round_trip


@contextmanager
def _zeromq() -> Generator[Callable[[], None]]:
    with tempfile.TemporaryDirectory(prefix="supdist-") as folder, zmq.Context() as context:
        router = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.RCVTIMEO, _TIMEOUT_MS)
        address = f"ipc://{folder}/floor"
        router.bind(address)
        with router, _echo("zeromq", address):
            # ROUTER can send only to a peer that has sent something.
            identity, _ = router.recv_multipart()

            def round_trip() -> None:
                router.send_multipart([identity, _MESSAGE])
                router.recv_multipart()

            yield round_trip


@contextmanager
def _echo(transport: str, address: str, *, keep: int | None = None) -> Generator[None]:
    command = [sys.executable, "-m", __name__, transport, address]
    with subprocess.Popen(command, pass_fds=[] if keep is None else [keep]) as process:
        try:
            yield
        finally:
            process.kill()


def main() -> None:
    """Be the other process: send back every message."""
    transport, address = sys.argv[1:]
    if transport == "socketpair":
        with socket.socket(fileno=int(address)) as stream:
            while data := stream.recv(len(_MESSAGE)):
                stream.sendall(data)
        return
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(address)
        dealer.send(b"ready")
        while True:
            dealer.send(dealer.recv())


if __name__ == "__main__":
    main()
