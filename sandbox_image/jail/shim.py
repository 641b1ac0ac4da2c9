"""The shim: one per sandbox, outside the walls. It owns the guest's byte stream and says how things ended.

Between the engine (trusted, ZeroMQ) and the guest (hostile, frames) it checks every frame, counts, keeps
the clocks, and kills. Single-threaded apart from libzmq; it waits in one place and blocks nowhere else.
"""

from __future__ import annotations

import os
import signal
import socket
import time
import traceback
from collections import deque
from typing import NoReturn

import msgspec
import zmq

from .. import protocol
from ..guest import init
from ..protocol import Done, Execute, Exit, Interrupt, Kill, Outcome, ReplExit, Reply, Violation
from . import syscalls as sc
from . import walls
from .attached import Attached, AttachedStream
from .guard import Guard, death
from .meter import meter_of
from .steps import StepFailed

_READ_BYTES = 1 << 18
_PACKET_BYTES = 64 << 10
_QUEUE_TO_ENGINE = 4096
"""Messages that may wait for a slow engine; above it the guest is not read."""
_QUEUED_BYTES = 8 << 20


def main(orders: socket.socket, kit: walls.Kit | None, engine_socket: str, zygote_pid: int) -> NoReturn:
    """Build a sandbox, wait on ``orders`` for its user, and be its shim until it has ended.

    Without a kit nothing is built: the order brings a guest that runs already.
    """
    try:
        sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != zygote_pid:  # it died before it could be tied to this process
            os._exit(0)
        sc.prctl(sc.PR_SET_CHILD_SUBREAPER, 1)
        sc.set_name("supdist-shim")
        _run(orders, kit, engine_socket, f"{zygote_pid}-{os.getpid()}")
    except BaseException:
        traceback.print_exc()
        os._exit(70)
    os._exit(0)


def _run(orders: socket.socket, kit: walls.Kit | None, engine_socket: str, name: str) -> None:
    built: walls.Walls | StepFailed | None = None
    if kit is not None:
        try:
            built = walls.build(kit, name, init.main)
        except StepFailed as failed:
            built = failed
    packet, descriptors, _, _ = socket.recv_fds(orders, _PACKET_BYTES, 1)
    orders.close()
    if not packet or not descriptors:
        os._exit(0)  # the zygote is gone, and this process about to be killed
    order = protocol.decode_to_zygote(packet)
    assert not isinstance(order, protocol.Abandon)
    box = _take(order, descriptors[0], built)
    # ZeroMQ starts threads, so it comes after the last fork.
    zeromq: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    engine = zeromq.socket(zmq.DEALER)
    engine.setsockopt(zmq.LINGER, 5000)
    engine.setsockopt(zmq.ROUTING_ID, order.session)
    engine.setsockopt(zmq.SNDTIMEO, 5000)
    engine.connect(f"ipc://{engine_socket}")
    namespaces = {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in os.listdir("/proc/self/ns")}
    engine.send(protocol.encode(protocol.Hello(namespaces)))
    if isinstance(box, StepFailed):
        engine.send(protocol.encode(protocol.SetupFailed(box.step, box.errno)))
    else:
        Shim(order.limits, engine, box).serve()
    engine.close()
    zeromq.term()


def _take(
    order: protocol.Spawn | protocol.Attach, descriptor: int, built: walls.Walls | StepFailed | None
) -> walls.Walls | Attached | StepFailed:
    """The guest that the order is about, with what came beside it: its context, or its stream."""
    if isinstance(order, protocol.Attach):
        return Attached(socket.socket(fileno=descriptor), order.groups)
    assert built is not None
    try:
        if isinstance(built, walls.Walls):
            _furnish(built, order.limits, descriptor)
    except StepFailed as failed:
        return failed
    finally:
        os.close(descriptor)
    return built


def _furnish(built: walls.Walls, limits: protocol.Limits, context: int) -> None:
    try:
        built.furnish(limits, context)
    except StepFailed:
        built.kill()
        built.remove()
        raise


class Lane:
    """One of a guest's streams: whole frames in and out, without blocking.

    Attributes:
        is_open: whether the guest's end is.
        waiting: bytes that the guest has not read yet.
    """

    def __init__(self, stream: socket.socket | AttachedStream, frame_bytes: int) -> None:
        stream.setblocking(False)
        self._stream = stream
        self._frames = protocol.FrameBuffer(frame_bytes)
        self._out: deque[memoryview] = deque()
        self.is_open = True
        self.waiting = 0

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._stream.fileno()

    def send(self, payload: bytes) -> None:
        """Write a frame, as much of it as there is room for now."""
        data = memoryview(protocol.frame(payload))
        self._out.append(data)
        self.waiting += len(data)
        self.flush()

    def flush(self) -> None:
        """Write what waits, as far as there is room."""
        try:
            while self._out:
                sent = self._stream.send(self._out[0])
                self.waiting -= sent
                if sent == len(self._out[0]):
                    self._out.popleft()
                else:
                    self._out[0] = self._out[0][sent:]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self._out.clear()  # its death is seen, with its reason, where the main stream is read
            self.waiting = 0

    def receive(self) -> list[bytes]:
        """The frames that are complete now.

        Raises:
            Violation: a frame's length is one that cannot be.
        """
        try:
            data = self._stream.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            data = b""
        self.is_open = bool(data)
        return self._frames.feed(data)


class Shim:
    """The loop: engine's socket, guest's stream, and the clock of the running cell."""

    def __init__(
        self, limits: protocol.Limits, engine: zmq.Socket[bytes], box: walls.Walls | Attached
    ) -> None:
        self._limits = limits
        self._engine = engine
        self._box = box
        self._main = Lane(box.stream, limits.frame_bytes)
        self._calls = self._main if box.calls is None else Lane(box.calls, limits.frame_bytes)
        self._guard = Guard(limits)
        self._meter = meter_of(box, limits)
        self._heard: deque[tuple[Lane, bytes]] = deque()
        self._to_engine: deque[bytes] = deque()
        self._bytes_to_engine = 0
        self._over: Exit | None = None
        self._quiet_until: float | None = None

    def serve(self) -> None:
        """Carry messages both ways until the guest is dead; then kill what is left and report."""
        engine, lanes = self._engine, {lane.fileno(): lane for lane in (self._main, self._calls)}
        poller = zmq.Poller()
        sync = self._box.sync
        if sync >= 0:
            poller.register(sync, zmq.POLLIN)
        while self._over is None:
            self._judge_what_was_heard()
            if self._over is not None:
                break
            listening = 0 if self._must_be_quiet() else zmq.POLLIN
            for fd, lane in lanes.items():
                poller.register(fd, (listening if lane.is_open else 0) | (zmq.POLLOUT if lane.waiting else 0))
            poller.register(engine, zmq.POLLIN | (zmq.POLLOUT if self._to_engine else 0))
            ready = dict(poller.poll(self._timeout_ms()))
            if sync in ready:
                poller.unregister(sync)
                sync = -1
                self._walls_stand_or_not()
            if ready.get(engine, 0):
                self._flush_to_engine()
                self._read_engine()
            for fd in ready.keys() & lanes.keys():
                if ready[fd] & zmq.POLLOUT:
                    lanes[fd].flush()
                if ready[fd] & ~zmq.POLLOUT:
                    self._read_guest(lanes[fd])
            self._keep_time()
        self._bury()

    def _must_be_quiet(self) -> bool:
        """Whether the guest is not listened to now.

        It calls too often, enough of what it asked is unanswered, or enough waits for a slow engine or for
        the guest itself, which does not read.
        """
        self._quiet_until = self._guard.quiet_until(time.monotonic())
        return (
            self._quiet_until is not None
            or self._guard.has_enough_pending
            or len(self._to_engine) >= _QUEUE_TO_ENGINE
            or self._bytes_to_engine >= _QUEUED_BYTES
            or self._main.waiting >= _QUEUED_BYTES
            or self._calls.waiting >= _QUEUED_BYTES
        )

    # Engine to guest

    def _read_engine(self) -> None:
        while True:
            try:
                payload = self._engine.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            message = protocol.decode_to_shim(payload)
            now = time.monotonic()
            match message:
                case Kill():
                    self._end(Outcome.KILLED, "killed by the engine")
                    return
                case Execute():
                    self._guard.execute(message.cell, message.timeout, now)
                    self._meter.begin()
                    self._main.send(payload)
                case protocol.PutFile() | protocol.GetFile() | protocol.ListFiles():
                    self._guard.ask(message)
                    self._main.send(payload)
                case Reply() | protocol.ToolReply():
                    if self._guard.reply(message, now):
                        self._calls.send(payload)
                case Interrupt():
                    if self._guard.cell is not None and self._guard.cell.number == message.cell:
                        self._interrupt(Outcome.KILLED, now)
                case _:
                    self._main.send(payload)

    # Guest to engine

    def _read_guest(self, lane: Lane) -> None:
        try:
            payloads = lane.receive()
        except Violation as error:
            self._end(Outcome.PROTOCOL_VIOLATION, str(error))
            return
        if lane is self._main and not lane.is_open:
            self._end(*self._how_the_guest_died(None))
            return
        self._heard.extend((lane, payload) for payload in payloads)
        self._judge_what_was_heard()

    def _judge_what_was_heard(self) -> None:
        """Message by message, as long as the guest may speak: one read may hold thousands."""
        try:
            while self._heard and self._over is None and not self._must_be_quiet():
                self._judge(*self._heard.popleft(), time.monotonic())
        except (Violation, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            detail = str(error) if isinstance(error, Violation) else "a frame that is no message"
            self._end(Outcome.PROTOCOL_VIOLATION, detail)

    def _judge(self, lane: Lane, payload: bytes, now: float) -> None:
        message = protocol.decode_from_guest(payload)
        if lane is not self._main and not isinstance(message, protocol.Call | protocol.ToolCall):
            raise Violation("a message that is no call where only calls go")
        if isinstance(message, ReplExit):
            self._end(*self._how_the_guest_died(message))
            return
        if isinstance(message, Done):
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
            self._send_engine(payload if verdict is message else protocol.encode(verdict))
        if refusal is not None:
            self._calls.send(protocol.encode(refusal))
        if self._guard.output_exceeded:
            self._interrupt(Outcome.OUTPUT_LIMIT, now)

    def _send_engine(self, payload: bytes) -> None:
        self._to_engine.append(payload)
        self._bytes_to_engine += len(payload)
        self._flush_to_engine()

    def _flush_to_engine(self) -> None:
        try:
            while self._to_engine:
                self._engine.send(self._to_engine[0], zmq.DONTWAIT)
                self._bytes_to_engine -= len(self._to_engine.popleft())
        except zmq.Again:
            pass

    # Clocks

    def _timeout_ms(self) -> int | None:
        cell, now = self._guard.cell, time.monotonic()
        clocks = (self._quiet_until,)
        if cell is not None:
            clocks = (cell.deadline(), self._meter.next_look(now), self._quiet_until)
        times = [at for at in clocks if at is not None]
        return max(0, int((min(times) - now) * 1000) + 1) if times else None

    def _keep_time(self) -> None:
        cell = self._guard.cell
        if self._over is not None or cell is None:
            return
        now = time.monotonic()
        exceeded = self._meter.look(now)
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
        self._main.send(protocol.encode(Interrupt(cell.number)))

    # The end

    def _walls_stand_or_not(self) -> None:
        failed = self._box.failure()
        if failed is not None:
            self._send_engine(protocol.encode(protocol.SetupFailed(failed.step, failed.errno)))
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
        self._box.kill()
        if self._guard.cell is not None:
            usage = self._meter.usage()
            verdict = self._guard.end_cell(
                self._over.outcome, None, time.monotonic(), usage, died=self._over.detail
            )
            self._to_engine.append(protocol.encode(verdict))
        self._box.remove()
        self._to_engine.append(protocol.encode(self._over))
        for payload in self._to_engine:
            self._engine.send(payload)
