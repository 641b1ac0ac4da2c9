"""Answers one question: opens what a run needs, runs the loop, and closes it all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ..handlers import ModelHandler
from .arguments import reject
from .broker.broker import Broker, CallSettings, open_broker
from .broker.cache import ResponseCache
from .broker.run_account import RunAccount
from .config import RunConfig
from .errors import LogError, TaskError
from .event_sink import EventSink
from .events import Event, RunEnded, RunStarted, Warned
from .limits import RunLimits
from .model_specs import handler_named
from .result import RunResult
from .runlog.writer import RunLogger
from .sandbox import SandboxConfig, open_sandbox
from .sandbox.context import encode_beside_loop
from .sandbox.packages import importable
from .supervisor.conversation import Conversation
from .supervisor.loop import RunOutcome, RunSpec, SupervisorLoop
from .supervisor.prompts import Prompts
from .toolbox.toolbox import Toolbox

_METRICS_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its document and its models."""

    query: str
    context: object
    supervisor: ModelHandler
    worker: ModelHandler | None

    @classmethod
    def checked(
        cls, query: object, context: object, supervisor: object, worker: object, worker_ctx_k: int
    ) -> Question:
        """Return a question; raise a ``TaskError`` for a wrong argument."""
        if not isinstance(query, str):
            reject("query", query, "text")
        if not query.strip():
            raise TaskError("query is empty; ask a question")
        asked = None if worker is None else handler_named("worker", worker, worker_ctx_k)
        return cls(query, context, handler_named("supervisor", supervisor, worker_ctx_k), asked)

    @property
    def handlers(self) -> list[ModelHandler]:
        """The models of the run."""
        return [self.supervisor] if self.worker is None else [self.supervisor, self.worker]


async def answer(question: Question, config: RunConfig, account: RunAccount, sink: EventSink) -> RunResult:
    """Answer a question. Raises as ``arun``."""
    started = time.monotonic()
    toolbox = Toolbox.of(config.tools)
    emit = sink.emit
    task = _run_spec(question, config, account, toolbox)
    async with contextlib.AsyncExitStack() as stack:
        run_id = account.run_id
        # First on the stack, so it closes last: the broker writes to it.
        log = _open_log(stack, config, account, emit)
        # The end of the run is an event, too.
        await stack.enter_async_context(sink.open())
        # The sandbox and the log share one encoding. Without a log, the sandbox encodes the context itself.
        encoded = stack.enter_context(await encode_beside_loop(question.context)) if log.is_on else None
        settings = _logged_settings(question, config, toolbox)
        starting = asyncio.ensure_future(log.start(question.query, encoded, **settings))
        try:
            # What opens last closes first: the sandbox before the broker, whose models it calls.
            broker = await _open_broker(stack, question, config, account, log, emit=emit)
            conversation = Conversation()
            tools = toolbox.with_own(_engine_tools(broker, conversation))
            opening = open_sandbox(
                config.sandbox,
                context=question.context if encoded is None else encoded,
                query=question.query,
                on_call=None if broker.worker_calls is None else broker.worker_calls.answer,
                tools=tools,
                on_tool=log.tool,
            )
            sandbox = await stack.enter_async_context(opening)
            await starting
            emit(RunStarted(run_id, sandbox.isolation, config.max_iterations))
            stack.enter_context(_metrics_every_second(broker, emit))
            prompts = config.prompts or Prompts()
            loop = SupervisorLoop(task, broker, sandbox, prompts, conversation, log, emit)
            ended = await loop.run()
        except BaseException as error:
            await _report_failure(log, starting, emit, run_id, error)
            raise
        unstored = await broker.store_answers()
        if sink.failure:
            log.warn(sink.failure)
        result = _result(run_id, loop, ended, unstored=unstored, elapsed=time.monotonic() - started)
        result = await _log_end(log, result)
        emit(RunEnded(run_id, "result", result))
        return result


def _result(
    run_id: str, loop: SupervisorLoop, ended: RunOutcome, *, unstored: int, elapsed: float
) -> RunResult:
    broker = loop.broker
    return RunResult(
        answer=ended.answer,
        iterations=loop.iterations,
        supervisor_usage=broker.supervisor_usage,
        worker_usage=broker.worker_usage,
        elapsed=elapsed,
        stop_reason=ended.stop_reason,
        isolation=loop.sandbox.isolation,
        run_id=run_id,
        cost_usd=broker.cost_usd,
        supervisor=broker.supervisor_totals,
        worker=broker.worker_totals,
        unstored_answers=unstored,
        worker_calls=broker.health.done,
        failed_calls=dict(broker.health.failed),
        failure=ended.failure,
    )


def _open_log(
    stack: contextlib.AsyncExitStack, config: RunConfig, account: RunAccount, emit: Callable[[Event], None]
) -> RunLogger:
    def warn(text: str) -> None:
        emit(Warned(text))

    parent = None if account.outer is None else account.outer.run_id
    log = RunLogger(
        config.log_dir, account.run_id, parent_run_id=parent, log_bytes=config.log_bytes, warn=warn
    )
    stack.enter_context(log)
    stack.push_async_callback(_end_log, log)
    return log


async def _log_end(log: RunLogger, result: RunResult) -> RunResult:
    result = replace(result, log_error=log.failure, warnings=tuple(log.warnings))
    try:
        await log.end(result)
    except LogError as error:
        # The answer was paid for: a full disk must not take it.
        log.report_failure(error)
    return replace(result, log_error=log.failure, warnings=tuple(log.warnings))


async def _end_log(log: RunLogger) -> None:
    # The result, or the error that ended the run, is on its way.
    with contextlib.suppress(LogError):
        await log.drain()


def limits_of(question: Question, config: RunConfig) -> RunLimits:
    """Return the limits of a run."""
    limits = RunLimits.of(config)
    if question.worker is None:
        # The supervisor is shown what is left of each limit: without a worker there are no calls to count.
        return limits.model_copy(update={"max_worker_calls": None})
    return limits


def _run_spec(question: Question, config: RunConfig, account: RunAccount, toolbox: Toolbox) -> RunSpec:
    return RunSpec(
        question.query,
        question.context,
        config.max_iterations,
        config.output_limit,
        config.worker_ctx_k,
        # An outer run's time is a limit, too.
        account.budget.left().seconds,
        config.call_seconds,
        config.final_seconds,
        toolbox.describe(),
        _importable_packages(config.sandbox),
        has_worker=question.worker is not None,
    )


def _importable_packages(sandbox: SandboxConfig | None) -> list[str]:
    if sandbox is None or sandbox.packages is None:
        return []
    # Opening the sandbox reports a folder that cannot be read.
    with contextlib.suppress(OSError):
        return importable(sandbox.packages)
    return []


def _logged_settings(question: Question, config: RunConfig, toolbox: Toolbox) -> dict[str, Any]:
    return {
        "supervisor_model": question.supervisor.model,
        "worker_model": None if question.worker is None else question.worker.model,
        "max_iterations": config.max_iterations,
        "output_limit": config.output_limit,
        "worker_ctx_k": config.worker_ctx_k,
        "max_seconds": config.max_seconds,
        "sandbox": (config.sandbox or SandboxConfig()).model_dump(),
        "tools": toolbox.kinds(),
    }


async def _open_broker(
    stack: contextlib.AsyncExitStack,
    question: Question,
    config: RunConfig,
    account: RunAccount,
    log: RunLogger,
    *,
    emit: Callable[[Event], None],
) -> Broker:
    for handler in question.handlers:
        await stack.enter_async_context(handler)
    store = await _open_cache(stack, config.cache)
    settings = CallSettings(store, config.cache_sampled, config.call_seconds, config.cache_counts)
    opening = open_broker(
        question.supervisor, question.worker, log, emit, on_retry=emit, account=account, settings=settings
    )
    return await stack.enter_async_context(opening)


async def _open_cache(
    stack: contextlib.AsyncExitStack, cache: str | os.PathLike[str] | ResponseCache
) -> ResponseCache | Literal["run"] | None:
    # A file named "off" or "run" needs its folder in front: "./off".
    if cache == "off":
        return None
    if cache == "run":
        return "run"
    if not isinstance(cache, ResponseCache):
        cache = ResponseCache(cache)
    return await stack.enter_async_context(cache)


def _engine_tools(broker: Broker, conversation: Conversation) -> dict[str, Callable[..., object]]:
    # The supervisor's code can read these docstrings: they are written for it.
    async def budget() -> dict[str, float | None]:
        """Return what is left of the budget: worker_calls, tokens, dollars, seconds; None means no limit."""
        return asdict(broker.budget.left())

    async def history(start: int = 0, stop: int | None = None) -> list[dict[str, str]]:
        """Return the whole messages of this conversation, as dicts with role and content."""
        return conversation.show(start, stop)

    return {"budget": budget, "history": history}


@contextlib.contextmanager
def _metrics_every_second(broker: Broker, emit: Callable[[Event], None]) -> Generator[None]:
    async def emit_metrics() -> None:
        while True:
            await asyncio.sleep(_METRICS_SECONDS)
            emit(broker.metrics())

    emitting = asyncio.ensure_future(emit_metrics())
    try:
        yield
    finally:
        emitting.cancel()


async def _report_failure(
    log: RunLogger,
    starting: asyncio.Future[None],
    emit: Callable[[Event], None],
    run_id: str,
    error: BaseException,
) -> None:
    # Ctrl-C in ``asyncio.run`` cancels the task; outside of it KeyboardInterrupt arrives itself.
    is_cancelled = isinstance(error, (asyncio.CancelledError, KeyboardInterrupt))
    # The caller gets the error that ended the run, so one of the log or of ``on_event`` must not replace it.
    with contextlib.suppress(Exception):
        await starting
        log.end_without_result(
            stop_reason="cancelled" if is_cancelled else None, error=f"{type(error).__name__}: {error}"
        )
        emit(RunEnded(run_id, "cancelled" if is_cancelled else "failed", None))
