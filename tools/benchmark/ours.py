"""The engine's own sandboxes as a subject, with worker calls through the broker of a run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Generator, Sequence
from contextlib import AsyncExitStack, contextmanager
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
from ...engine.broker.broker import CallSettings, open_broker
from ...engine.broker.cache import ResponseCache
from ...engine.runlog.writer import RunLogger
from ...handlers import Completion, Message, ModelHandler, Price
from .metrics import OURS
from .subjects import Session
from .trials import Interactive

T = TypeVar("T")

# Between two users the zygote has time to build the next sandbox. The metric `cycle` leaves it none.
_REST_SECONDS = 0.05

# The defaults, but for a cell that prints 50 MB.
CONFIG = SandboxConfig.model_validate({"output": "64MiB"})

_ANSWER = Completion("y")


class InstantModel(ModelHandler):
    """A model that answers each conversation at once."""

    model = "null"
    price = Price(0, 0)

    async def chat(self, messages: Sequence[Message]) -> Completion:
        """Return the same answer."""
        return _ANSWER


class InstantBatchModel(InstantModel):
    """A model that answers many conversations at once."""

    async def chat_batch(self, message_batches: Sequence[Sequence[Message]]) -> Sequence[Completion]:
        """Return the same answer to each."""
        return [_ANSWER] * len(message_batches)


class OurSession(Session):
    """A sandbox with a broker."""

    def __init__(self, ours: OurSessions, stack: AsyncExitStack, sandbox: Sandbox) -> None:
        self._ours = ours
        self._stack = stack
        self.sandbox = sandbox

    def run(self, code: str) -> str:
        """See ``Session.run``."""
        return checked(self._ours.wait(self.sandbox.execute(code))).stdout

    def times(self, code: str, count: int) -> list[float]:
        """See ``Session.times``."""
        # Timed in the event loop, where users of the engine call it.
        return self._ours.wait(execute_times(self.sandbox, code, count))

    def close(self) -> None:
        """See ``Session.close``."""
        self._ours.wait(self._stack.aclose())


class OurSessions(Interactive):
    """Sandboxes of one runtime. See ``open``."""

    name = OURS
    ask = ("worker", "worker_batch")
    takes_context = True

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner

    @classmethod
    @contextmanager
    def open(cls) -> Generator[Self]:
        """Start a runtime."""
        # The event loop runs only while ours is measured: it takes no time from the peers in this process.
        with asyncio.Runner() as runner:
            runtime = SandboxRuntime(CONFIG)
            runner.run(runtime.__aenter__())
            try:
                yield cls(runner)
            finally:
                runner.run(runtime.__aexit__(None, None, None))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the event loop until the work is done."""
        return self._runner.run(work)

    def start(self, context: object = "", worker: ModelHandler | None = None) -> OurSession:
        """See ``Interactive.start``."""
        return self.wait(self._start(context, worker or InstantModel()))

    async def _start(self, context: object, worker: ModelHandler) -> OurSession:
        async with AsyncExitStack() as stack:
            settings = CallSettings(
                await stack.enter_async_context(ResponseCache()), call_seconds=RunLimits().call_seconds
            )
            log = RunLogger(None, "benchmark")
            opening = open_broker(InstantModel(), worker, log, lambda _: None, settings=settings)
            broker = await stack.enter_async_context(opening)
            assert broker.worker_calls is not None
            opened = open_sandbox(CONFIG, context=context, on_call=broker.worker_calls.answer)
            sandbox = await stack.enter_async_context(opened)
            return OurSession(self, stack.pop_all(), sandbox)

    def first_output(self, context: object = "") -> float:
        """See ``Interactive.first_output``."""
        return self.wait(self._open_after_rest(context))

    async def _open_after_rest(self, context: object) -> float:
        await asyncio.sleep(_REST_SECONDS)
        return await open_seconds(context)

    def isolation(self) -> Isolation:
        """Return the isolation that is measured from inside a sandbox."""

        async def measure() -> Isolation:
            async with open_sandbox(CONFIG) as sandbox:
                return sandbox.isolation

        return self.wait(measure())


def checked(result: CellResult, *expected: Outcome) -> CellResult:
    """Return a result with an expected outcome, ``OK`` by default.

    Raises:
        RuntimeError: it has another outcome.
    """
    # The time of a cell that failed means nothing.
    if result.outcome not in (expected or (Outcome.OK,)):
        raise RuntimeError(
            f"a cell of the benchmark ended with {result.outcome}: {result.error or result.detail}"
        )
    return result


async def execute_times(sandbox: Sandbox, code: str, count: int) -> list[float]:
    """Return the seconds of each of ``count`` executions."""
    found: list[float] = []
    for _ in range(count):
        start = time.perf_counter()
        result = await sandbox.execute(code)
        found.append(time.perf_counter() - start)
        checked(result)
    return found


async def open_seconds(context: object = "") -> float:
    """Return the seconds until a new sandbox has printed something."""
    start = time.perf_counter()
    async with open_sandbox(CONFIG, context=context) as sandbox:
        result = await sandbox.execute("print(1)")
        took = time.perf_counter() - start
    if checked(result).stdout != "1\n":
        raise RuntimeError(f"the cell printed {result.stdout!r} instead of 1")
    return took


def processes_in_use() -> list[dict[str, int]]:
    """Return the pids of ``shim``, ``init`` and ``repl`` of each sandbox in use."""
    found: list[dict[str, int]] = []
    for shim in _children(psutil.Process(), "supdist-zygote", "supdist-shim"):
        for init in _children(shim, "supdist-init"):
            # The repl of the sandbox that is built ahead has another name.
            found.extend(
                {"shim": shim.pid, "init": init.pid, "repl": repl.pid} for repl in _children(init, "python")
            )
    return found


def _children(parent: psutil.Process, *names: str) -> list[psutil.Process]:
    level = [parent]
    for name in names:
        level = [child for each in level for child in each.children() if child.name() == name]
    return level
