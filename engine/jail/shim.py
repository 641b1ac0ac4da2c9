"""The shim: one per sandbox, outside the walls. It owns the guest's byte streams and says how things ended.

Between the engine (trusted, ZeroMQ) and the guest (hostile, frames) it checks every frame, counts, keeps
the clocks, and kills. Single-threaded; it poller in one place and blocks nowhere else: what could hold a pipe's lock
while it poller for something is refused to the guest (``seccomp.json``).

A guest of ours has a stream of its repl, one of its init, and for each cell pipes, which are read here: neither a call
nor a cell has to wake init. A container's has its stdio alone, and its init carries all of that.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import struct
import time
import traceback
from collections import deque
from typing import NoReturn

import msgspec

from ...sandbox_image import linux, protocol
from ...sandbox_image.guard import Guard, death
from ...sandbox_image.guest import init
from ...sandbox_image.protocol import (
    Done,
    Execute,
    Exit,
    Interrupt,
    Kill,
    Outcome,
    Ready,
    ReplExit,
    Reply,
    Violation,
)
from . import isolated_process
from .attached import AttachedContainer
from .message_stream import DescriptorPoller, MessageStream
from .meter import CgroupMeter, Meter, NoMeter
from .output import Piece, output_reader
from .setup_errors import SetupError
from .zmtp import Peer

_PACKET_BYTES = 64 << 10
_QUEUE_TO_ENGINE = 4096
"""Messages that may wait for a slow engine; above it the guest is not read."""
_QUEUED_BYTES = 8 << 20
_CONNECT_SECONDS = 5
_LAST_WORDS_SECONDS = 5.0
_OF_INIT = (protocol.FileData, protocol.FileList, ReplExit)
_HUNG_UP = protocol.encode(protocol.HungUp())


def main(
    orders: socket.socket, template: isolated_process.Template | None, engine_socket: str, zygote_pid: int
) -> NoReturn:
    """Build a sandbox, wait on ``orders`` for its user, and be its shim until it has ended.

    Without a template nothing is built: the order brings a guest that runs already.
    """
    try:
        linux.kill_with_parent()
        if os.getppid() != zygote_pid:  # it died before it could be tied to this process
            os._exit(0)
        linux.set_process_name("supdist-spare")
        _run(orders, template, engine_socket, f"{zygote_pid}-{os.getpid()}")
    except BaseException:
        traceback.print_exc()
        os._exit(70)
    os._exit(0)


def _run(
    orders: socket.socket, template: isolated_process.Template | None, engine_socket: str, name: str
) -> None:
    built = None
    if template is not None:
        with contextlib.suppress(SetupError):  # told to its user, where it is no better then
            built = isolated_process.build(template, name, init.main)
    packet, descriptors, _, _ = socket.recv_fds(orders, _PACKET_BYTES, 1)
    orders.close()
    if not packet or not descriptors:
        os._exit(0)  # the zygote is gone, and this process about to be killed
    order = protocol.decode_to_zygote(packet)
    assert not isinstance(order, protocol.Abandon)
    linux.set_process_name("supdist-shim")
    process: isolated_process.IsolatedProcess | AttachedContainer | SetupError
    if isinstance(order, protocol.Attach):
        process = AttachedContainer(socket.socket(fileno=descriptors[0]), order.groups)
        meter = NoMeter() if process.cgroup is None else CgroupMeter(process.cgroup)
    else:
        assert template is not None
        process = _with_limits(template, name, built, order.resources, descriptors[0])
        meter = None if isinstance(process, SetupError) else meter_of(process, order.resources)
        os.close(descriptors[0])
    engine = _connect(engine_socket, order.session)
    namespaces = {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in os.listdir("/proc/self/ns")}
    engine.send(protocol.encode(protocol.Hello(namespaces)))
    if isinstance(process, SetupError):
        engine.send(protocol.encode(protocol.SetupFailed(process.step, process.errno)))
    else:
        # Cells' pipes pass through a socket, and how many descriptors of a user's may do that at once is a limit of
        # whoever sends one more: guests' own are lower.
        _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
        assert meter is not None
        Shim(order.limits, engine, process, meter).serve()
    engine.drain(_LAST_WORDS_SECONDS)


def _connect(path: str, session: bytes) -> MessageStream:
    """A DEALER of that name, connected to the engine's ROUTER."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Where many come at once it poller for its turn, as a socket with Python's own timeout would not.
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _CONNECT_SECONDS, 0))
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _CONNECT_SECONDS, 0))
    stream.connect(path)
    dealer = Peer(b"DEALER", protocol.MAX_FRAME_BYTES, session)
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
    """A sandbox with these limits. What was built ahead may have failed since, or may have failed then: it is tried again."""
    if built is not None:
        with contextlib.suppress(SetupError):
            return _apply_limits(built, limits, context)
    try:
        return _apply_limits(isolated_process.build(template, name, init.main), limits, context)
    except SetupError as failed:
        return failed


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
    """Return the meter of a sandbox: its control group's, else one that samples its processes."""
    if process.cgroup is not None:
        return CgroupMeter(process.cgroup)
    from .watchdog import Watchdog

    return Watchdog(process.pid, limits)


class Shim:
    """The loop: engine's socket, guest's streams, what its cells print, and the clock of the running cell."""

    def __init__(
        self,
        limits: protocol.SessionLimits,
        engine: MessageStream,
        process: isolated_process.IsolatedProcess | AttachedContainer,
        meter: Meter,
    ) -> None:
        self._limits = limits
        self._engine = engine
        self._process = process
        self._init = MessageStream(process.init_stream, protocol.FrameBuffer(limits.frame_bytes))
        self._repl = (
            self._init
            if process.repl_stream is None
            else MessageStream(process.repl_stream, protocol.FrameBuffer(limits.frame_bytes))
        )
        self._output = output_reader(process, self._init)
        self._sync = process.setup_fd
        self._guard = Guard(limits)
        self._meter = meter
        self._heard: deque[tuple[MessageStream, bytes]] = deque()
        self._over: Exit | None = None
        self._quiet_until: float | None = None

    def serve(self) -> None:
        """Carry messages both ways until the guest is dead; then kill what is left and report."""
        poller = DescriptorPoller()
        if self._sync >= 0:
            poller.watch(self._sync, select.POLLIN)
        while self._over is None:
            self._judge_what_was_heard()
            if self._over is not None:
                break
            listening = 0 if self._must_be_quiet() else select.POLLIN
            for lane in (self._init, self._repl):
                events = (listening if lane.is_open else 0) | (select.POLLOUT if lane.unsent_bytes else 0)
                poller.watch(lane.fileno(), events)
            poller.watch(
                self._engine.fileno(), select.POLLIN | (select.POLLOUT if self._engine.unsent_bytes else 0)
            )
            poller.watch_group(self._output.descriptors(), listening)
            ready = poller.poll(self._timeout_ms())
            if self._sync in ready:
                poller.watch(self._sync, 0)
                self._sync = -1
                self._walls_stand_or_not()
            self._attend(ready)
            self._keep_time()
        self._bury()

    def _attend(self, ready: dict[int, int]) -> None:
        if self._engine.fileno() in ready:
            self._engine.flush()
            self._read_engine()
        for lane in dict.fromkeys((self._repl, self._init)):
            events = ready.get(lane.fileno(), 0)
            if events & select.POLLOUT:
                lane.flush()
            if events & ~select.POLLOUT:
                self._read_guest(lane)
        for fd in ready.keys() & self._output.descriptors():
            self._hear_output(self._output.read(fd))

    def _must_be_quiet(self) -> bool:
        """Whether the guest is not listened to now.

        It calls too often, enough of what it asked is unanswered, or enough poller for a slow engine or for
        the guest itself, which does not read.
        """
        self._quiet_until = self._guard.quiet_until(time.monotonic())
        return (
            self._quiet_until is not None
            or self._guard.has_enough_pending
            or len(self._engine) >= _QUEUE_TO_ENGINE
            or self._engine.unsent_bytes >= _QUEUED_BYTES
            or self._init.unsent_bytes >= _QUEUED_BYTES
            or self._repl.unsent_bytes >= _QUEUED_BYTES
        )

    # Engine to guest

    def _read_engine(self) -> None:
        payloads = self._engine.receive()
        if not self._engine.is_open:
            self._end(Outcome.KILLED, "the engine is gone")
            return
        for payload in payloads or ():
            message = protocol.decode_to_shim(payload)
            now = time.monotonic()
            match message:
                case Kill():
                    self._end(Outcome.KILLED, "killed by the engine")
                    return
                case Execute():
                    self._guard.execute(message.cell, message.timeout, now)
                    self._begin_cell(payload, now)
                case protocol.PutFile() | protocol.GetFile() | protocol.ListFiles():
                    self._guard.ask(message)
                    self._init.send(payload)
                case Reply() | protocol.ToolReply():
                    if self._guard.reply(message, now):
                        self._repl.send(payload)
                case Interrupt():
                    if self._guard.cell is not None and self._guard.cell.number == message.cell:
                        self._interrupt(Outcome.KILLED, now)
                case _:
                    self._repl.send(payload)

    def _begin_cell(self, order: bytes, now: float) -> None:
        self._meter.begin_cell()
        try:
            pipes = self._output.begin_cell(now)
        except OSError as error:
            self._end(Outcome.RESOURCE_LIMIT, f"no pipes for the cell: {error.strerror}")
        else:
            self._repl.send(order, pipes)

    # Guest to engine

    def _read_guest(self, lane: MessageStream) -> None:
        if lane is self._init:
            self._read_the_repl_first()
        self._read_lane(lane)
        self._judge_what_was_heard()
        if self._over is None and lane is self._init and not lane.is_open:
            self._end(*self._how_the_guest_died(None))

    def _read_the_repl_first(self) -> None:
        """All that its socket may hold: what init says next may be its death."""
        if self._process.repl_stream is None:
            return
        room = self._process.repl_stream.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        for _ in range(room // protocol.READ_BYTES + 2):
            if not self._read_lane(self._repl):
                return

    def _read_lane(self, lane: MessageStream) -> bool:
        """Whether there was something, if only a part of a message."""
        if not lane.is_open or self._over is not None:
            return False
        try:
            payloads = lane.receive()
        except Violation as error:
            self._end(Outcome.PROTOCOL_VIOLATION, str(error))
            return False
        self._heard.extend((lane, payload) for payload in payloads or ())
        if not lane.is_open and lane is not self._init:
            self._init.send(_HUNG_UP)
        return payloads is not None

    def _hear_output(self, piece: Piece | None) -> None:
        cell = self._guard.cell
        if cell is not None and piece is not None:
            now = time.monotonic()
            for_engine, _ = self._guard.accept(protocol.Output(cell.number, *piece), now)
            for part in for_engine:
                self._engine.send(protocol.encode(part))
            self._keep_output_short(now)

    def _keep_output_short(self, now: float) -> None:
        if self._guard.output_exceeded and self._over is None:
            self._interrupt(Outcome.OUTPUT_LIMIT, now)

    def _judge_what_was_heard(self) -> None:
        """Message by message, as long as the guest may speak: one read may hold thousands."""
        try:
            while self._heard and self._over is None and not self._must_be_quiet():
                self._judge(*self._heard.popleft(), time.monotonic())
        except (Violation, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            detail = str(error) if isinstance(error, Violation) else "a frame that is no message"
            self._end(Outcome.PROTOCOL_VIOLATION, detail)

    def _judge(self, lane: MessageStream, payload: bytes, now: float) -> None:
        message = protocol.decode_from_guest(payload)
        if self._init is not self._repl and isinstance(message, _OF_INIT) != (lane is self._init):
            raise Violation("a message of init that the repl sent, or one of the repl from init")
        if isinstance(message, ReplExit):
            self._end(*self._how_the_guest_died(message))
            return
        if isinstance(message, Done):
            self._hear_the_last_output()
            used, refused = self._meter.usage(), self._meter.was_refused_a_process()
            exceeded = self._meter.exceeded()
            if exceeded is not None:
                self._end(*exceeded)
                return
            for_engine, refusal = self._guard.accept(message, now, used, refused_a_process=refused)
        else:
            for_engine, refusal = self._guard.accept(message, now)
        for verdict in for_engine:
            # What was only checked goes on as it came: encoding it again would cost and say nothing new.
            self._engine.send(payload if verdict is message else protocol.encode(verdict))
        if refusal is not None:
            self._repl.send(protocol.encode(refusal))
        self._keep_output_short(now)
        if isinstance(message, Done | Ready):  # the engine has been told, and does not wait for this
            self._output.end_cell()
            self._output.prepare()

    def _hear_the_last_output(self) -> None:
        for piece in self._output.drain():
            self._hear_output(piece)

    # Clocks

    def _timeout_ms(self) -> int | None:
        cell, now = self._guard.cell, time.monotonic()
        clocks: tuple[float | None, ...] = (self._quiet_until,)
        if cell is not None:
            clocks = (
                cell.deadline(),
                self._meter.next_check(now),
                self._quiet_until,
                self._output.release_at,
            )
        times = [at for at in clocks if at is not None]
        return max(0, int((min(times) - now) * 1000) + 1) if times else None

    def _keep_time(self) -> None:
        cell = self._guard.cell
        if self._over is not None or cell is None:
            return
        now = time.monotonic()
        self._output.release_if_due(now)
        exceeded = self._meter.check(now)
        if exceeded is not None:
            self._end(*exceeded)
            return
        if now < cell.deadline():
            return
        if cell.interrupted is None:
            self._interrupt(Outcome.TIMEOUT, now)
        else:
            self._end(cell.interrupted, "did not stop when interrupted")

    def _interrupt(self, outcome: Outcome, now: float) -> None:
        cell = self._guard.cell
        if cell is None or cell.interrupted is not None:
            return
        self._guard.interrupt(outcome, now)
        self._init.send(protocol.encode(Interrupt(cell.number)))

    # The end

    def _walls_stand_or_not(self) -> None:
        failed = self._process.setup_error()
        if failed is not None:
            self._engine.send(protocol.encode(protocol.SetupFailed(failed.step, failed.errno)))
            self._end(Outcome.KILLED, "the walls could not be built")

    def _how_the_guest_died(self, last: ReplExit | None) -> tuple[Outcome, str]:
        """Init said its last words, or the stream ended without any; its PID namespace is dead or dying."""
        exceeded = self._meter.exceeded()
        if exceeded is not None:
            return exceeded
        return death(last)

    def _end(self, outcome: Outcome, detail: str) -> None:
        if self._over is None:
            self._over = Exit(outcome, detail)

    def _bury(self) -> None:
        """Kill what is left of the guest, wait until it is gone, then tell the engine."""
        assert self._over is not None
        self._process.kill()
        self._hear_the_last_output()
        if self._guard.cell is not None:
            usage = self._meter.usage()
            verdict = self._guard.end_cell(
                self._over.outcome, None, time.monotonic(), usage, died=self._over.detail
            )
            self._engine.send(protocol.encode(verdict))
        self._process.remove_cgroup()
        self._engine.send(protocol.encode(self._over))
