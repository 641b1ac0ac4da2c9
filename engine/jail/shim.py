"""The shim: one host process per sandbox, between the trusted engine and the hostile guest.

``GuestSession`` holds the rules. The shim reads, writes, measures and kills, in one thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import time
import traceback
from collections.abc import Iterable
from typing import NoReturn

from ...sandbox_image import linux, protocol
from ...sandbox_image.guest import init
from ...sandbox_image.guest_session import Backlog, GuestSession, Measured, Send, Source
from ...sandbox_image.protocol import (
    CellEnd,
    Execute,
    Interrupt,
    Outcome,
    Ready,
    Reply,
    ReplyPart,
    Taken,
    ToolReply,
    Violation,
)
from . import isolated_process
from .attached import AttachedContainer
from .duty_cycle import duty_cycle
from .message_stream import DescriptorPoller, MessageStream
from .meter import CgroupMeter, Meter, NoMeter
from .output import output_reader
from .process_tree import ProcessTree
from .setup_errors import SetupError
from .socket_memory import SocketMemory
from .watchdog import Watchdog
from .zmtp import ZmtpConnection

_PACKET_BYTES = 64 << 10
_GREETING_SECONDS = 5.0
_DRAIN_SECONDS = 5.0
# The engine knows how many bytes of replies are under way but for these.
_UNREPORTED_BYTES = 64 << 10


def main(orders: socket.socket, template: isolated_process.Template | None, zygote_pid: int) -> NoReturn:
    """Build a sandbox, wait for its order, and serve it to its end.

    Args:
        orders: a socket that gets one ``Spawn`` or ``Attach``, with its descriptors.
        template: None for guests in containers.
    """
    try:
        linux.kill_with_parent()
        # The zygote may have died before that call.
        if os.getppid() != zygote_pid:
            os._exit(0)
        linux.set_process_name("supdist-spare")
        _run(orders, template, f"{zygote_pid}-{os.getpid()}")
    except BaseException:
        traceback.print_exc()
        os._exit(70)
    os._exit(0)


def _run(orders: socket.socket, template: isolated_process.Template | None, name: str) -> None:
    built = None
    if template is not None:
        # After a failure it is built again for the order, and then reported.
        with contextlib.suppress(SetupError):
            built = _build(template, name)
    packet, descriptors, _, _ = socket.recv_fds(orders, _PACKET_BYTES, 2)
    orders.close()
    if not packet or len(descriptors) != 2:
        # The zygote is gone.
        os._exit(0)
    order = protocol.decode_to_zygote(packet)
    assert not isinstance(order, protocol.Abandon)
    linux.set_process_name("supdist-shim")
    process: isolated_process.IsolatedProcess | AttachedContainer | SetupError
    meter: Meter = NoMeter()
    if isinstance(order, protocol.Attach):
        process = AttachedContainer(socket.socket(fileno=descriptors[0]), order.groups)
        if process.cgroup is not None:
            meter = CgroupMeter(process.cgroup)
    else:
        assert template is not None
        process = _with_limits(template, name, built, order.resources, descriptors[0])
        os.close(descriptors[0])
        if not isinstance(process, SetupError):
            meter = meter_of(process, order.resources)
    engine = _greet(socket.socket(fileno=descriptors[1]), order.session)
    namespaces = {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in os.listdir("/proc/self/ns")}
    engine.send(protocol.encode(protocol.Hello(namespaces, meter.enforcement)))
    if isinstance(process, SetupError):
        engine.send(protocol.encode(protocol.SetupFailed(process.step, process.errno)))
    else:
        # The pipes of cells pass through a socket. The sender's limit bounds how many descriptors of a user
        # may be in flight (unix(7)). Guests have lower limits.
        _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
        Shim(order.limits, engine, process, meter).serve()
    engine.drain(_DRAIN_SECONDS)


def _greet(stream: socket.socket, session: bytes) -> MessageStream:
    # The engine has sent its part before it passed the socket on. So nothing here waits for its event loop.
    stream.settimeout(_GREETING_SECONDS)
    dealer = ZmtpConnection(b"DEALER", protocol.MAX_FRAME_BYTES, session)
    stream.sendall(dealer.handshake)
    while not dealer.is_ready:
        data = stream.recv(_PACKET_BYTES)
        if not data:
            raise ConnectionError("the engine closed its socket")
        dealer.feed(data)
    return MessageStream(stream, dealer)


def _with_limits(
    template: isolated_process.Template,
    name: str,
    built: isolated_process.IsolatedProcess | None,
    limits: protocol.ResourceLimits,
    context: int,
) -> isolated_process.IsolatedProcess | SetupError:
    # What was built ahead may have failed since.
    if built is not None:
        with contextlib.suppress(SetupError):
            return _apply_limits(built, limits, context)
    try:
        return _apply_limits(_build(template, name), limits, context)
    except SetupError as error:
        return error


def _build(template: isolated_process.Template, name: str) -> isolated_process.IsolatedProcess:
    try:
        return isolated_process.build(template, name, init.main)
    except OSError as error:
        raise SetupError("fork", error.errno or 0) from error
    except MemoryError as error:
        raise SetupError("fork", errno.ENOMEM) from error


def _apply_limits(
    built: isolated_process.IsolatedProcess, limits: protocol.ResourceLimits, context: int
) -> isolated_process.IsolatedProcess:
    try:
        built.apply_limits(limits, context)
    except SetupError:
        built.kill()
        built.remove_cgroup()
        raise
    return built


def meter_of(process: isolated_process.IsolatedProcess, limits: protocol.ResourceLimits) -> Meter:
    """Return the meter of a sandbox."""
    tree = ProcessTree(process.pid)
    if process.cgroup is not None and process.cgroup.limits_cpus:
        return CgroupMeter(process.cgroup)
    duty = duty_cycle(tree, limits.cpus, time.monotonic())
    if process.cgroup is not None:
        return CgroupMeter(process.cgroup, tree, duty)
    sockets = None if process.socket_list is None else SocketMemory(process.socket_list)
    return Watchdog(tree, limits, sockets=sockets, duty=duty, processors=len(os.sched_getaffinity(0)))


class Shim:
    """The event loop of one sandbox."""

    # An isolated guest has a stream for its repl and one for its init, and pipes for each cell. So neither a
    # call nor a cell wakes init. A container has only its stdio, and its init relays all of that.

    def __init__(
        self,
        limits: protocol.SessionLimits,
        engine: MessageStream,
        process: isolated_process.IsolatedProcess | AttachedContainer,
        meter: Meter,
    ) -> None:
        self._process = process
        self._meter = meter
        self._session = GuestSession(limits, has_two_streams=process.repl_stream is not None)
        init = MessageStream(process.init_stream, protocol.FrameBuffer(limits.guest_frame_bytes))
        repl = init
        if process.repl_stream is not None:
            repl = MessageStream(process.repl_stream, protocol.FrameBuffer(limits.guest_frame_bytes))
        self._engine, self._init, self._repl = engine, init, repl
        self._streams = {"engine": engine, "init": init, "repl": repl}
        # The repl first: init's next message may be the end of the guest.
        self._guest_streams: dict[Source, MessageStream] = {"init": init}
        if repl is not init:
            self._guest_streams = {"repl": repl, "init": init}
        self._output = output_reader(process, init)
        # Bytes of replies: from the engine, and those of them that the engine knows to be taken.
        self._replied = self._reported = 0
        self._setup_fd = process.setup_fd
        self._poller = DescriptorPoller()

    def serve(self) -> None:
        """Relay messages until the session ends, then kill the guest and report."""
        if self._setup_fd >= 0:
            self._poller.watch(self._setup_fd, select.POLLIN)
        while self._session.ending is None:
            self._process_frames()
            if self._session.ending is not None:
                break
            self._watch()
            ready = self._poller.poll(self._timeout_ms())
            if self._setup_fd in ready:
                self._finish_setup()
            self._read_and_write(ready)
            self._report_taken()
            self._check_time()
        self._clean_up()

    def _watch(self) -> None:
        reading = select.POLLIN if self._session.may_read(time.monotonic(), self._backlog()) else 0
        for stream in self._guest_streams.values():
            events = (reading if stream.is_open else 0) | (select.POLLOUT if stream.unsent_bytes else 0)
            self._poller.watch(stream.fileno(), events)
        events = select.POLLIN | (select.POLLOUT if self._engine.unsent_bytes else 0)
        self._poller.watch(self._engine.fileno(), events)
        self._poller.watch_group(self._output.descriptors(time.monotonic()), reading)

    def _backlog(self) -> Backlog:
        return Backlog(
            len(self._engine),
            self._engine.unsent_bytes,
            max(self._init.unsent_bytes, self._repl.unsent_bytes),
        )

    def _read_and_write(self, ready: dict[int, int]) -> None:
        if self._engine.fileno() in ready:
            self._engine.flush()
            self._read_engine()
        for source, stream in self._guest_streams.items():
            events = ready.get(stream.fileno(), 0)
            if events & select.POLLOUT:
                stream.flush()
            if events & ~select.POLLOUT:
                self._read_guest(source, stream)
        now = time.monotonic()
        for fd in ready.keys() & self._output.descriptors(now):
            piece = self._output.read(fd, now)
            if piece is not None:
                self._send(self._session.output(*piece, now))

    def _report_taken(self) -> None:
        # A reply counts until the guest's socket has it: engine and shim hold what the guest does not read.
        taken = self._replied - self._repl.unsent_bytes
        if taken - self._reported >= _UNREPORTED_BYTES:
            self._engine.send(protocol.encode(Taken(taken - self._reported)))
            self._reported = taken

    def _read_engine(self) -> None:
        payloads = self._engine.receive()
        if not self._engine.is_open:
            self._session.end(Outcome.KILLED, "the engine is gone")
            return
        for payload in map(bytes, payloads or ()):
            message = protocol.decode_to_shim(payload)
            if isinstance(message, Reply | ReplyPart | ToolReply):
                self._replied += len(payload)
            self._send(self._session.from_engine(message, time.monotonic(), payload))

    def _read_guest(self, source: Source, stream: MessageStream) -> None:
        if source == "init" and self._process.repl_stream is not None:
            # All that the repl's socket may hold: init's next message may be the end of the guest.
            room = self._process.repl_stream.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            for _ in range(room // protocol.READ_BYTES + 2):
                if not self._receive("repl", self._repl):
                    break
        self._receive(source, stream)
        self._process_frames()
        if source == "init" and not stream.is_open:
            self._send(self._session.closed("init", self._meter.exceeded()))

    def _receive(self, source: Source, stream: MessageStream) -> bool:
        # True if anything arrived, even a part of a frame.
        if not stream.is_open or self._session.ending is not None:
            return False
        try:
            payloads = stream.receive()
        except Violation as error:
            self._session.end_with_error(error)
            return False
        # Nothing from a container is a piece of its stderr, or a part of a header.
        if payloads is not None or self._repl is self._init:
            self._session.from_guest(source, payloads or ())
        if not stream.is_open and source == "repl":
            self._send(self._session.closed("repl"))
        return payloads is not None

    def _process_frames(self) -> None:
        # One read may hold thousands of frames, and each may be the last that the guest may send for now.
        while self._session.has_frames:
            now = time.monotonic()
            if not self._session.may_process(now, self._backlog()):
                break
            self._send(self._session.process_frame(now))
            if self._session.unmeasured is not None:
                self._measure()

    def _measure(self) -> None:
        if isinstance(self._session.unmeasured, protocol.Done):
            self._drain_output()
        facts = Measured(self._meter.usage(), self._meter.exceeded(), self._meter.was_refused_a_process())
        self._send(self._session.measured(facts, time.monotonic()))

    def _drain_output(self) -> None:
        for piece in self._output.drain():
            self._send(self._session.output(*piece, time.monotonic()))

    def _send(self, sends: Iterable[Send]) -> None:
        for send in sends:
            if isinstance(send.message, Execute):
                self._begin_cell(send)
                continue
            self._streams[send.to].send(send.encoded())
            if isinstance(send.message, Interrupt):
                self._meter.interrupted()
            if isinstance(send.message, CellEnd | Ready):
                # Only now: the engine does not wait for it.
                self._output.end_cell()
                self._output.prepare()

    def _begin_cell(self, send: Send) -> None:
        self._meter.begin_cell()
        try:
            pipes = self._output.begin_cell(time.monotonic())
        except OSError as error:
            self._session.end(
                Outcome.RESOURCE_LIMIT, f"the pipes of the cell cannot be made: {error.strerror}"
            )
        else:
            self._repl.send(send.encoded(), pipes)

    def _timeout_ms(self) -> int | None:
        now = time.monotonic()
        clocks = [self._session.next_time(), self._meter.next_check(now)]
        if self._session.cell is not None:
            clocks += [self._output.release_at, self._output.read_at]
        times = [at for at in clocks if at is not None]
        return max(0, int((min(times) - now) * 1000) + 1) if times else None

    def _check_time(self) -> None:
        if self._session.ending is not None:
            return
        now = time.monotonic()
        exceeded = self._meter.check(now)
        if self._session.cell is None:
            # A child may have outlived its cell.
            if exceeded is not None:
                self._session.end(exceeded[0], f"between two blocks {exceeded[1]}")
            return
        self._output.release_if_due(now)
        if exceeded is not None:
            self._session.end(*exceeded)
        self._send(self._session.tick(now))

    def _finish_setup(self) -> None:
        self._poller.watch(self._setup_fd, 0)
        self._setup_fd = -1
        error = self._process.setup_error()
        if error is not None:
            self._engine.send(protocol.encode(protocol.SetupFailed(error.step, error.errno)))
            self._session.end(Outcome.KILLED, "the isolation could not be set up")

    def _clean_up(self) -> None:
        ending = self._session.ending
        assert ending is not None
        self._process.kill()
        self._drain_output()
        usage = self._meter.usage()
        for send in self._session.end_cell(time.monotonic(), usage):
            self._engine.send(send.encoded())
        self._process.remove_cgroup()
        # Last: the engine then counts on it that nothing is left of the sandbox.
        self._engine.send(protocol.encode(ending))
