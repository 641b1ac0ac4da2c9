"""The engine's own sandboxes as a subject: all walls on, worker calls through the broker as a run has them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil

from ...engine import (
    CellResult,
    Isolation,
    Outcome,
    RunLimits,
    Sandbox,
    SandboxConfig,
    SandboxRuntime,
    open_sandbox,
)
from ...engine.broker.broker import Broker, CallRules
from ...engine.broker.cache import ResponseCache
from ...engine.runlog.writer import RunLogger
from ...handlers import Completion, Message, ModelHandler, Price
from .metrics import OURS
from .subjects import Session
from .trials import Interactive

T = TypeVar("T")

_REST = 0.05
"""Seconds in which the zygote builds the next sandbox, as it can between two users. ``cycle`` leaves it none."""

CONFIG = SandboxConfig.model_validate({"output": "64MiB"})
"""The defaults, but for a cell that prints 50 MB."""


_ANSWER = Completion("y")


class One(ModelHandler):
    """Answers each conversation for itself."""

    model = "null"
    price = Price(0, 0)

    async def chat(self, messages: Sequence[Message]) -> Completion:
        """Next to nothing, at once."""
        return _ANSWER


class Many(One):
    """Answers what waits together."""

    async def chat_batch(self, message_batches: Sequence[Sequence[Message]]) -> Sequence[Completion]:
        """Next to nothing, at once."""
        return [_ANSWER] * len(message_batches)


class OurSession(Session):
    """A sandbox behind a broker, in the subject's event loop."""

    def __init__(self, ours: OurSessions, stack: AsyncExitStack, sandbox: Sandbox) -> None:
        self._ours = ours
        self._stack = stack
        self.sandbox = sandbox

    def run(self, code: str) -> str:
        """See ``Session.run``."""
        return checked(self._ours.wait(self.sandbox.execute(code))).stdout

    def times(self, code: str, count: int) -> list[float]:
        """See ``Session.times``: measured within the event loop, where its users are."""
        return self._ours.wait(execute_times(self.sandbox, code, count))

    def close(self) -> None:
        """See ``Session.close``."""
        self._ours.wait(self._stack.aclose())


class OurSessions(Interactive):
    """Sandboxes of one engine, which is up between ``with`` and its end.

    Its event loop runs only while something of ours is measured, so that peers have the process to themselves.
    """

    name = OURS
    ask = ("worker", "worker_batch")
    takes_context = True

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        self._engine = SandboxRuntime(CONFIG)
        try:
            self.wait(self._engine.__aenter__())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait(self._engine.__aexit__(None, None, None))
        finally:
            self._runner.close()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the event loop until the work is done."""
        return self._runner.run(work)

    def start(self, context: object = "", worker: ModelHandler | None = None) -> OurSession:
        """See ``Interactive.start``."""
        return self.wait(self._start(context, worker or One()))

    async def _start(self, context: object, worker: ModelHandler) -> OurSession:
        async with AsyncExitStack() as stack:
            rules = CallRules(
                await stack.enter_async_context(ResponseCache()), call_seconds=RunLimits().call_seconds
            )
            broker = Broker(One(), worker, RunLogger(None, "benchmark"), lambda _: None, rules=rules)
            await stack.enter_async_context(broker)
            opened = open_sandbox(CONFIG, context=context, on_call=broker.answer)
            sandbox = await stack.enter_async_context(opened)
            return OurSession(self, stack.pop_all(), sandbox)

    def first_output(self, context: object = "") -> float:
        """See ``Interactive.first_output``."""
        return self.wait(self._open_rested(context))

    async def _open_rested(self, context: object) -> float:
        await asyncio.sleep(_REST)
        return await open_seconds(context)

    def isolation(self) -> Isolation:
        """What is measured of the walls from inside."""

        async def look() -> Isolation:
            async with open_sandbox(CONFIG) as sandbox:
                return sandbox.isolation

        return self.wait(look())


def checked(result: CellResult, *expected: Outcome) -> CellResult:
    """A result that ended as it should: a figure of one that failed would say nothing.

    Raises:
        RuntimeError: it ended otherwise.
    """
    if result.outcome not in (expected or (Outcome.OK,)):
        raise RuntimeError(
            f"a cell of the benchmark ended with {result.outcome}: {result.error or result.detail}"
        )
    return result


async def execute_times(sandbox: Sandbox, code: str, count: int) -> list[float]:
    """Seconds of each of so many cells."""
    found: list[float] = []
    for _ in range(count):
        start = time.perf_counter()
        result = await sandbox.execute(code)
        found.append(time.perf_counter() - start)
        checked(result)
    return found


async def open_seconds(context: object = "") -> float:
    """Seconds from the order for a sandbox to the output of its first cell."""
    start = time.perf_counter()
    async with open_sandbox(CONFIG, context=context) as sandbox:
        result = await sandbox.execute("print(1)")
        took = time.perf_counter() - start
    if checked(result).stdout != "1\n":
        raise RuntimeError(f"the cell printed {result.stdout!r}")
    return took


def processes_in_use() -> list[dict[str, int]]:
    """Of each sandbox in use below this process: the pids of ``shim``, ``init`` and ``repl``.

    The zygote keeps one more built ahead, whose repl does not bear its name yet.
    """
    found: list[dict[str, int]] = []
    for shim in _children(psutil.Process(), "supdist-zygote", "supdist-shim"):
        for init in _children(shim, "supdist-init"):
            found.extend(
                {"shim": shim.pid, "init": init.pid, "repl": repl.pid} for repl in _children(init, "python")
            )
    return found


def _children(parent: psutil.Process, *names: str) -> list[psutil.Process]:
    """The processes that a path of names leads to."""
    level = [parent]
    for name in names:
        level = [child for each in level for child in each.children() if child.name() == name]
    return level
