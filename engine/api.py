"""``arun`` and ``run``: a question about a context, answered."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from dataclasses import asdict
from typing import Any, Literal, ParamSpec, TypeVar

from anyio.from_thread import start_blocking_portal
from pydantic import Field

from ..handlers import ModelHandler
from .broker.broker import Broker, CallRules
from .broker.budget import Budget, BudgetLimits
from .broker.cache import ResponseCache
from .errors import TaskError
from .events import Event, RunEnded, RunStarted
from .result import RunResult
from .runlog.writer import RunLogger, new_run_id
from .sandbox import SandboxConfig, open_sandbox
from .sandbox.context import EncodedContext
from .sandbox.packages import importable
from .supervisor.conversation import Conversation
from .supervisor.loop import Research, Task
from .supervisor.prompts import Prompts
from .toolbox.toolbox import Tool, Toolbox

P = ParamSpec("P")
T = TypeVar("T")


class RunLimits(BudgetLimits):
    """What a run may take, besides its turns. Where a limit is reached, a best answer is asked for."""

    call_seconds: float | None = Field(
        default=600.0, gt=0, description="seconds for one worker call, from its way to the model on"
    )
    final_seconds: float = Field(default=60.0, gt=0, description="seconds for that best answer")


async def arun(
    *,
    query: str,
    context: object,
    supervisor: ModelHandler,
    worker: ModelHandler | None,
    max_iterations: int = 15,
    log_dir: str | os.PathLike[str] | None = None,
    output_limit: int = 2000,
    worker_ctx_k: int = 8,
    sandbox: SandboxConfig | None = None,
    limits: RunLimits | None = None,
    cache: str | os.PathLike[str] | ResponseCache = "run",
    cache_sampled: bool = False,
    cache_counts: bool = False,
    on_event: Callable[[Event], None] | None = None,
    prompts: Prompts | None = None,
    tools: Mapping[str, Tool] | None = None,
) -> RunResult:
    """Let ``supervisor`` answer a question about a long context by writing code that ``worker`` reads it through.

    Args:
        query: the question.
        context: the document: a str, or a list or dict of plain data.
        supervisor: the model that writes code.
        worker: the model that the code asks; where None the supervisor is told of none, and a call raises
            ``WorkerError`` in its code.
        max_iterations: turns of the supervisor; then it is asked once for its best answer.
        log_dir: a folder for supervisor.jsonl, worker.jsonl and repl.jsonl; nothing is logged where None.
        output_limit: characters of a block's output that the supervisor is shown. The log keeps all.
        worker_ctx_k: the worker's window in thousands of tokens, as the supervisor is told.
        sandbox: limits and timeouts of the sandbox.
        limits: what else the run may take.
        cache: where finished answers are kept, so that none is paid for twice: ``run`` for this run, ``off``,
            or a file, which runs and processes may share, or a ``ResponseCache`` that is not open.
        cache_sampled: whether answers that are drawn at random (temperature above 0) are kept, too.
        cache_counts: whether an answer that another run paid for takes from the limits what it took there, so that
            a run that was interrupted can be begun again as it was.
        on_event: called with each ``Event``, in the event loop; it must not block.
        prompts: other texts for the supervisor.
        tools: more functions for the supervisor's code, by their names: one that is given as it is goes into the
            sandbox, with all that it uses; a ``HostTool`` stays here and is called.

    Raises:
        TaskError: an argument is wrong.
        SandboxUnavailable: the isolation cannot be had here; nothing was spent.
        LogError: the logs cannot be written; nothing more was spent.
        CacheError: the cache's file cannot be used; nothing was spent.
        HandlerError: the supervisor's endpoint failed for good. What was logged stays.
    """
    _check(query, max_iterations, output_limit, worker_ctx_k)
    limits = limits or RunLimits()
    if worker is None:
        limits = limits.model_copy(
            update={"max_worker_calls": None}
        )  # or it would be shown what is left of them
    toolbox = Toolbox.of(tools)
    emit = on_event or _ignore
    run_id = new_run_id()
    task = Task(
        query, context, max_iterations, output_limit, worker_ctx_k, limits.max_seconds, limits.final_seconds,
        toolbox.describe(), _packages(sandbox), has_worker=worker is not None,
    )  # fmt: skip
    started = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        log = stack.enter_context(RunLogger(log_dir, run_id))
        # The sandbox and the log share one encoding. Without a log, the sandbox encodes the context itself.
        encoded = stack.enter_context(EncodedContext(context)) if log.is_on else None
        settings = _settings(task, supervisor, worker, sandbox or SandboxConfig())
        starting = asyncio.ensure_future(log.start(query, encoded, **settings, tools=toolbox.kinds()))
        try:
            for handler in (supervisor, worker):
                if handler is not None:
                    await stack.enter_async_context(handler)
            store = await _open_cache(stack, cache)
            rules = CallRules(store, cache_sampled, limits.call_seconds, cache_counts)
            broker = Broker(supervisor, worker, log, emit, budget=Budget(limits), rules=rules)
            await stack.enter_async_context(broker)
            conversation = Conversation()
            opened = open_sandbox(
                sandbox,
                context=context if encoded is None else encoded,
                query=query,
                on_call=None if worker is None else broker.answer,
                tools=toolbox.with_own(_own_tools(broker, conversation)),
                on_tool=log.tool,
            )
            box = await stack.enter_async_context(opened)
            await starting
            emit(RunStarted(run_id, box.isolation, max_iterations))
            stack.enter_context(_told_every_second(broker, emit))
            research = Research(task, broker, box, prompts or Prompts(), conversation, log, emit)
            answer, stop_reason = await research.run()
        except BaseException as error:
            cancelled = isinstance(error, (asyncio.CancelledError, KeyboardInterrupt))
            how: Literal["cancelled", "failed"] = "cancelled" if cancelled else "failed"
            with contextlib.suppress(Exception):  # the first error is the one to report
                await starting
                log.end_without_result(
                    stop_reason="cancelled" if cancelled else None,
                    error=f"{type(error).__name__}: {error}",
                )
                emit(RunEnded(run_id, how, None))
            raise
        result = RunResult(
            answer=answer,
            iterations=research.iterations,
            supervisor_usage=broker.supervisor.usage,
            worker_usage=broker.worker.usage,
            elapsed=time.monotonic() - started,
            stop_reason=stop_reason,
            isolation=box.isolation,
            run_id=run_id,
            cost_usd=broker.cost_usd,
            supervisor=broker.supervisor.totals,
            worker=broker.worker.totals,
        )
        log.end(result)
        emit(RunEnded(run_id, "result", result))
        return result


def _packages(sandbox: SandboxConfig | None) -> list[str]:
    """The names that code can import besides; a folder that cannot be read is the sandbox's to complain of."""
    if sandbox is None or sandbox.packages is None:
        return []
    with contextlib.suppress(OSError):
        return importable(sandbox.packages)
    return []


async def _open_cache(
    stack: contextlib.AsyncExitStack, cache: str | os.PathLike[str] | ResponseCache
) -> ResponseCache | None:
    if cache == "off":
        return None
    if not isinstance(cache, ResponseCache):
        cache = ResponseCache(None if cache == "run" else cache)
    return await stack.enter_async_context(cache)


def _own_tools(broker: Broker, conversation: Conversation) -> dict[str, Callable[..., object]]:
    """What a run's code has besides the worker."""

    async def budget() -> dict[str, float | None]:
        """What is left of the run's budget: worker_calls, tokens, dollars, seconds; None where there is no limit."""
        return asdict(broker.budget.left())

    async def history(start: int = 0, stop: int | None = None) -> list[dict[str, str]]:
        """The messages of this conversation, whole, as dicts with role and content."""
        return conversation.show(start, stop)

    return {"budget": budget, "history": history}


@contextlib.contextmanager
def _told_every_second(broker: Broker, emit: Callable[[Event], None]) -> Generator[None]:
    async def tell() -> None:
        while True:
            await asyncio.sleep(1)
            emit(broker.metrics())

    telling = asyncio.ensure_future(tell())
    try:
        yield
    finally:
        telling.cancel()


def _documented_as(
    function: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[[Callable[..., T]], Callable[P, T]]:
    """Give a blocking function the parameters and the docstring of its ``async`` form."""

    def decorate(call: Callable[..., T]) -> Callable[P, T]:
        call.__doc__ = function.__doc__
        call.__dict__["__wrapped__"] = function  # inspect.signature follows it
        return call

    return decorate


@_documented_as(arun)
def run(*args: Any, **kwargs: Any) -> RunResult:
    """Answer a question about a long context and wait for the result. Parameters and errors are those of ``arun``."""
    # The event loop has its own thread, because a notebook already runs one in this thread.
    with start_blocking_portal("asyncio") as portal:
        return portal.call(lambda: arun(*args, **kwargs))


def as_data(result: RunResult) -> dict[str, Any]:
    """A result as plain data, for logs and ``--json``."""
    return asdict(result)


def _settings(
    task: Task, supervisor: ModelHandler, worker: ModelHandler | None, sandbox: SandboxConfig
) -> dict[str, Any]:
    return {
        "supervisor_model": supervisor.model,
        "worker_model": None if worker is None else worker.model,
        "max_iterations": task.max_iterations,
        "output_limit": task.output_limit,
        "worker_ctx_k": task.worker_ctx_k,
        "max_seconds": task.max_seconds,
        "sandbox": sandbox.model_dump(),
    }


def _check(query: str, max_iterations: int, output_limit: int, worker_ctx_k: int) -> None:
    if not query.strip():
        raise TaskError("query is empty; ask a question")
    for name, value, least in (
        ("max_iterations", max_iterations, 1),
        ("output_limit", output_limit, 1),
        ("worker_ctx_k", worker_ctx_k, 1),
    ):
        if value < least:
            raise TaskError(f"{name} must be at least {least}, not {value}")


def _ignore(_: Event) -> None:
    return None
