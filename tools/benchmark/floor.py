"""The machine's floor: what it costs to wake another process and be woken by it, whatever the two have to say.

An idle virtual processor sleeps, and its waking up is most of a short round trip. A worker call is one over each, from the
repl to the shim and from there to the engine, so that it cannot take less than both together.
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
_MS = 20_000


class Floor(Subject):
    """Round trips over a bare socketpair, and over bare ZeroMQ."""

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


def _round_trip_us(there_and_back: Callable[[], None], count: int) -> float:
    found: list[float] = []
    for _ in range(count):
        start = time.perf_counter()
        there_and_back()
        found.append(time.perf_counter() - start)
    return statistics.median(found) * 1e6


@contextmanager
def _socketpair() -> Generator[Callable[[], None]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(_MS / 1000)
    with ours, _echo("socketpair", str(theirs.fileno()), keep=theirs.fileno()):
        theirs.close()

        def there_and_back() -> None:
            ours.sendall(_MESSAGE)
            if not ours.recv(len(_MESSAGE)):
                raise RuntimeError("the other process ended")

        there_and_back()
        yield there_and_back


@contextmanager
def _zeromq() -> Generator[Callable[[], None]]:
    with tempfile.TemporaryDirectory(prefix="supdist-") as folder, zmq.Context() as context:
        router = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.RCVTIMEO, _MS)
        address = f"ipc://{folder}/floor"
        router.bind(address)
        with router, _echo("zeromq", address):
            identity, _ = router.recv_multipart()

            def there_and_back() -> None:
                router.send_multipart([identity, _MESSAGE])
                router.recv_multipart()

            yield there_and_back


@contextmanager
def _echo(way: str, place: str, *, keep: int | None = None) -> Generator[None]:
    """Another process that sends back what it gets."""
    command = [sys.executable, "-m", __name__, way, place]
    with subprocess.Popen(command, pass_fds=[] if keep is None else [keep]) as process:
        try:
            yield
        finally:
            process.kill()


def main() -> None:
    """The other process."""
    way, place = sys.argv[1:]
    if way == "socketpair":
        with socket.socket(fileno=int(place)) as stream:
            while data := stream.recv(len(_MESSAGE)):
                stream.sendall(data)
        return
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(place)
        dealer.send(b"here")
        while True:
            dealer.send(dealer.recv())


if __name__ == "__main__":
    main()
