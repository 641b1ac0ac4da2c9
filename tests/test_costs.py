"""Costs in counts that no machine changes: frames, messages, system calls, bytes, processes, tasks."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from process_support import guest_processes_named
from support import CountingSelector, Open, echo

from supdist.engine import SandboxConfig, SandboxRuntime, open_sandbox
from supdist.engine.broker.broker import open_broker
from supdist.engine.jail.message_stream import MessageStream
from supdist.engine.runlog.writer import RunLogger
from supdist.engine.sandbox import CallError, WorkerCall
from supdist.engine.sandbox.context import ContextMemory
from supdist.engine.sandbox.zygote import ZygoteClient
from supdist.handlers import Completion, Message, ModelHandler, Price
from supdist.sandbox_image import protocol
from supdist.sandbox_image.guest.channel import Channel
from supdist.sandbox_image.guest.primitives import Primitives

START = protocol.Start("", True, True, 1 << 20, 1024, 16 << 20, 1 << 20, 32 << 20, [], [])


class Counting(socket.socket):
    """A socket that counts what is asked of the kernel."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(fileno=sock.detach())
        self.asked: Counter[str] = Counter()

    def sendall(self, *arguments: Any) -> None:
        self.asked["send"] += 1
        super().sendall(*arguments)

    def send(self, *arguments: Any) -> int:
        self.asked["send"] += 1
        return super().send(*arguments)

    def recv(self, *arguments: Any) -> bytes:
        self.asked["receive"] += 1
        return super().recv(*arguments)

    def recvmsg(self, *arguments: Any) -> Any:
        self.asked["receive"] += 1
        return super().recvmsg(*arguments)


@contextmanager
def pair() -> Generator[tuple[Counting, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    with Counting(ours) as counting, theirs:
        yield counting, theirs


def answer_calls(sock: socket.socket, received: list[protocol.Call]) -> None:
    """Answer every call, until the guest closes its end."""
    frames = protocol.FrameBuffer(protocol.MAX_FRAME_BYTES)
    while data := sock.recv(1 << 20):
        for payload in frames.feed(data):
            call = protocol.decode_from_guest(payload)
            assert isinstance(call, protocol.Call)
            received.append(call)
            reply = protocol.Reply(call.call, ["y"] * len(call.prompts))
            sock.sendall(protocol.frame(protocol.encode(reply)))


@pytest.mark.parametrize(("prompts", "frames"), [(1, 1), (200, 1), (256, 1), (257, 2), (10_000, 40)])
def test_in_the_guest_a_call_is_a_frame_and_a_system_call_each_way(prompts: int, frames: int) -> None:
    received: list[protocol.Call] = []
    with pair() as (repl, host):
        primitives = Primitives(Channel(repl), START, lambda: 1)
        answering = threading.Thread(target=answer_calls, args=(host, received))
        answering.start()
        assert primitives.worker_batch(["x"] * prompts) == ["y"] * prompts
        repl.shutdown(socket.SHUT_WR)
        answering.join(10)
        assert len(received) == frames
        assert repl.asked["send"] == frames
        assert repl.asked["receive"] <= frames


def test_in_the_shim_a_frame_is_a_system_call() -> None:
    with pair() as (ours, guest):
        stream = MessageStream(ours, protocol.FrameBuffer(1 << 20))
        guest.sendall(protocol.frame(b"call"))
        assert stream.receive() == [b"call"]
        stream.send(b"reply")
        assert ours.asked == {"send": 1, "receive": 1}
        assert stream.unsent_bytes == 0


async def talk(zygote: ZygoteClient, code: str) -> Counter[str]:
    """Run a cell in its own sandbox, answer its calls, and count the messages from its shim."""
    messages: asyncio.Queue[protocol.FromShim | protocol.ShimExit] = asyncio.Queue()
    fd = zygote.contexts.descriptor("")
    session = zygote.spawn(
        messages.put_nowait, SandboxConfig().session_limits(), SandboxConfig().resource_limits(), fd
    )
    kind = zygote.contexts.write(fd, "")
    os.close(fd)
    received: Counter[str] = Counter()
    async with asyncio.timeout(30):
        while not isinstance(message := await messages.get(), protocol.CellEnd):
            match message:
                case protocol.Hello():
                    zygote.send(session, START)
                    zygote.send(session, protocol.Load(kind, "descriptor", b""))
                case protocol.Ready():
                    zygote.send(session, protocol.Execute(1, code, 30.0))
                case protocol.Call():
                    received["call"] += 1
                    zygote.send(session, protocol.Reply(message.call, ["y"] * len(message.prompts)))
                case _:
                    received["more"] += 1
        received["end"] += 1
        assert message.error is None
        zygote.send(session, protocol.Kill())
        while not isinstance(message, protocol.Exit):
            message = await messages.get()
    return received


async def test_a_call_is_a_message_each_way_and_a_cell_two() -> None:
    zygote = await ZygoteClient.start()
    try:
        assert await talk(zygote, "1 + 1") == {"more": 1, "end": 1}, "the value that it shows, and its end"
        assert await talk(zygote, "x = 1") == {"end": 1}
        assert await talk(zygote, "for _ in range(10): worker('x')") == {"call": 10, "end": 1}
        assert await talk(zygote, "worker_batch(['x'] * 200); None") == {"call": 1, "end": 1}
    finally:
        await zygote.close()


def written() -> int:
    """Bytes that this process has handed to write(2), to files of memory too (proc(5), io)."""
    with open("/proc/self/io", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("wchar:"))


def test_a_text_is_written_once_however_often_it_is_opened() -> None:
    text, contexts = "x" * 4_000_000, ContextMemory()
    before = written()
    first = contexts.descriptor(text)
    contexts.write(first, text)
    once = written() - before
    again = contexts.descriptor(text)
    contexts.write(again, text)
    twice = written() - before
    try:
        assert len(text) <= once < 1.1 * len(text)
        assert twice - once < 1000
        assert os.fstat(first).st_ino == os.fstat(again).st_ino, "the same memory, not a copy"
    finally:
        os.close(first)
        os.close(again)
        contexts.close()


@pytest.mark.not_over("docker", "docker-runsc", reason="processes of the host's are counted")
async def test_sandboxes_of_one_text_share_what_was_written_and_have_three_processes_each(
    small: Open,
) -> None:
    text = "x" * 4_000_000
    before = written()
    async with small(context=text) as first, small(context=text) as second:
        for sandbox in (first, second):
            assert (await sandbox.execute("print(len(context))")).stdout == "4000000\n"
        # What goes over sockets is not counted.
        assert len(text) <= written() - before < 1.2 * len(text)
        shims = guest_processes_named("supdist-shim")
        assert len(shims) == 2
        for shim in shims:
            below = psutil.Process(shim).children(recursive=True)
            assert sorted(child.name() for child in below) == ["python", "supdist-init"]


class Null(ModelHandler):
    """Answers at once."""

    model = "null"
    price = Price(0, 0)

    async def chat(self, messages: Sequence[Message]) -> Completion:
        return Completion("y")


async def tasks_of(on_call: Any, code: str) -> int:
    """How many tasks the event loop began while a cell ran."""
    loop, begun = asyncio.get_running_loop(), 0

    def begin(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        nonlocal begun
        begun += 1
        return asyncio.Task(work, loop=loop, **options)

    async with open_sandbox(on_call=on_call) as sandbox:
        loop.set_task_factory(begin)
        try:
            result = await sandbox.execute(code)
        finally:
            loop.set_task_factory(None)
    assert result.error is None
    return begun


async def test_a_worker_call_is_two_tasks_of_the_event_loop_and_an_execution_none() -> None:
    """One that answers the guest, and one that asks the model."""

    async def direct(call: WorkerCall) -> Sequence[str | CallError]:
        return await echo(call)

    async with SandboxRuntime(), open_broker(Null(), Null(), RunLogger(None, "x"), lambda _: None) as broker:
        assert broker.worker_calls is not None
        assert await tasks_of(direct, "x = 1") == 0
        assert await tasks_of(direct, "for _ in range(50): worker('x')") == 50
        assert await tasks_of(broker.worker_calls.answer, "for _ in range(50): worker('x')") == 100
        # One that asks for all 200, and one behind it for each 64, in case that the handler waits.
        assert await tasks_of(broker.worker_calls.answer, "worker_batch(['x'] * 200); None") <= 1 + 1 + 4


def test_a_worker_call_takes_few_turns_of_the_event_loop() -> None:
    """Each is a system call, and looks at everything that is due. Calls that come together share turns."""
    selector, calls = CountingSelector(), 200

    async def turns() -> int:
        async with (
            open_broker(Null(), Null(), RunLogger(None, "x"), lambda _: None) as broker,
            open_sandbox(on_call=broker.worker_calls and broker.worker_calls.answer) as sandbox,
        ):
            before = selector.polls
            result = await sandbox.execute(f"for _ in range({calls}): worker('x')")
            assert result.error is None
            return selector.polls - before

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        took = runner.run(turns())
    assert took <= 7 * calls


FLOOD = """
protocol = __import__("sys").modules["supdist.sandbox_image.protocol"]
import gc
primitives = next(found for found in gc.get_objects() if type(found).__name__ == 'Primitives')
channel = primitives._channel
frames = b"".join(protocol.frame(protocol.encode(protocol.Call(call, 1, ["x"]))) for call in range(1, 1001))
channel._sock.sendall(frames)
for call in range(1, 1001): channel.reply(call)
"""


async def test_of_a_flood_of_calls_the_event_loop_sees_to_a_few_in_a_turn() -> None:
    """So that what else is due waits for these few, and not for all of them."""
    loop, over = asyncio.get_running_loop(), False
    begun = [0]

    def turn() -> None:
        begun.append(0)
        if not over:
            loop.call_soon(turn)

    async def on_call(call: WorkerCall) -> Sequence[str | CallError]:
        begun[-1] += 1
        return ["y"]

    async with open_sandbox(SandboxConfig(calls_per_second=100_000), on_call=on_call) as sandbox:
        turn()
        result = await sandbox.execute(FLOOD)
        over = True
    assert result.error is None
    assert sum(begun) == 1000
    assert max(begun) <= 16
