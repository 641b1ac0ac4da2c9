"""Answer one question about a context."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import asdict, replace
from typing import Any, ParamSpec, TypedDict, TypeVar, Unpack

from ..handlers import ModelHandler
from .answer import Question, answer, limits_of
from .arguments import reject
from .broker.cache import ResponseCache
from .broker.run_account import RunAccount, outer_run
from .config import DEFAULTS, Default, RunConfig, option_list
from .errors import TaskError
from .event_sink import EventQueue, EventSink, OnEvent
from .events import Event
from .limits import RunLimits
from .notebook import notebook_progress
from .result import RunResult
from .runlog.writer import new_run_id
from .sandbox import SandboxConfig
from .sandbox.sync_sandbox import blocking_calls
from .supervisor.prompts import Prompts
from .toolbox.toolbox import Tool

P = ParamSpec("P")
T = TypeVar("T")


class RunOptions(TypedDict, total=False):
    """The other keywords of ``arun``; ``RunConfig`` documents them."""

    limits: RunLimits | None
    max_worker_calls: int | None
    max_tokens: int | None
    max_cost_usd: float | None
    max_seconds: float | None
    call_seconds: float | None
    final_seconds: float
    sandbox: SandboxConfig | None
    cache: str | os.PathLike[str] | ResponseCache
    cache_sampled: bool
    cache_counts: bool
    on_event: OnEvent | None
    prompts: Prompts | None
    log_bytes: int | None


async def arun(
    *,
    query: str,
    context: object,
    supervisor: ModelHandler | str,
    worker: ModelHandler | str | None,
    max_iterations: int = DEFAULTS.max_iterations,
    log_dir: str | os.PathLike[str] | None = DEFAULTS.log_dir,
    output_limit: int = DEFAULTS.output_limit,
    worker_ctx_k: int = DEFAULTS.worker_ctx_k,
    tools: Mapping[str, Tool] | None = DEFAULTS.tools,
    config: RunConfig | None = None,
    **options: Unpack[RunOptions],
) -> RunResult:
    """Answer a question about a long context: ``supervisor`` writes code, and the code calls ``worker``.

    Give each option once: as a keyword, or in ``config``.

    Args:
        query: the question.
        context: the document: text, or a list or dict of plain data.
        supervisor: the model that writes code: a handler, or a name such as "ollama/qwen3:8b".
        worker: the model that the code calls. With None, the code has no ``worker``.
        config: options in one value.
        **options: options by name; ``limits`` holds several.

    Raises:
        TaskError: an argument is wrong.
        SandboxUnavailable: this machine lacks the isolation; nothing was spent.
        LogError: the logs cannot be written; nothing more was spent.
        CacheError: the cache's file cannot be used; nothing was spent.
        HandlerError: the supervisor's endpoint failed for good. The logs stay.
    """
    common = {
        "max_iterations": max_iterations,
        "log_dir": log_dir,
        "output_limit": output_limit,
        "worker_ctx_k": worker_ctx_k,
        "tools": tools,
    }
    given = {name: value for name, value in common.items() if not isinstance(value, Default)}
    settings = _merge_options(config, {**given, **options})
    question = Question.checked(query, context, supervisor, worker, settings.worker_ctx_k)
    with outer_run() as outer:
        account = RunAccount.open(new_run_id(), limits_of(question, settings), outer)
        try:
            return await answer(question, settings, account, EventSink(account.run_id, settings.on_event))
        finally:
            # A run inside this one that goes on in a thread may spend nothing more.
            account.budget.close()


def _merge_options(config: object, given: Mapping[str, object]) -> RunConfig:
    given = dict(given)
    limits = given.pop("limits", None)
    if limits is not None:
        if not isinstance(limits, RunLimits):
            reject("limits", limits, "a RunLimits or None", "give RunLimits(max_tokens=100_000)")
        for name, value in limits.given().items():
            if name in given:
                raise TaskError(f"{name} is given twice: in limits and as {name}=; remove one of them")
            given[name] = value
    if config is None:
        return RunConfig.from_mapping(given)
    if not isinstance(config, RunConfig):
        reject("config", config, "a RunConfig or None", "give RunConfig(max_iterations=15)")
    return config.override(given)


def as_data(result: RunResult) -> dict[str, Any]:
    """Return a result as plain data."""
    return asdict(result)


def _documented_as(
    function: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[[Callable[..., T]], Callable[P, T]]:

    # help() shows a blocking function with the parameters and the text of its async form.
    def decorate(call: Callable[..., T]) -> Callable[P, T]:
        call.__doc__ = function.__doc__
        call.__dict__["__wrapped__"] = function  # inspect.signature follows it
        return call

    return decorate


def _streams(
    function: Callable[P, Coroutine[Any, Any, object]],
) -> Callable[[Callable[..., AsyncGenerator[Event]]], Callable[P, AsyncGenerator[Event]]]:

    def decorate(stream: Callable[..., AsyncGenerator[Event]]) -> Callable[P, AsyncGenerator[Event]]:
        stream.__dict__["__wrapped__"] = function  # as above
        return stream

    return decorate


# Only here are all options known: each has one place, which is RunConfig.
arun.__doc__ = f"{arun.__doc__ or ''}\n{option_list(4)}\n"


@_documented_as(arun)
def run(*args: Any, **kwargs: Any) -> RunResult:
    """Wait for ``arun``, whose parameters and errors these are. In a notebook it shows progress."""
    _check_arguments("run", args, kwargs)
    with notebook_progress() as show:
        if show is not None and not _on_event(kwargs):
            kwargs = {**kwargs, "on_event": show}
        # In a thread, because a notebook already runs an event loop in this one.
        with blocking_calls() as thread:
            return thread.call(lambda: arun(*args, **kwargs))


@_streams(arun)
async def astream(*args: Any, **kwargs: Any) -> AsyncGenerator[Event]:
    """Answer a question as ``arun`` does, and yield its events; the last is ``RunEnded`` with the result.

    A loop that is left early cancels the run, once the generator is closed (``contextlib.aclosing``).
    Parameters and errors are those of ``arun``.
    """
    _check_arguments("astream", args, kwargs)
    queue, own = EventQueue(), _on_event(kwargs)

    def on_event(event: Event) -> object:
        queue.put(event)
        return own(event) if own is not None else None

    # arun reports what is no function.
    if own is None or callable(own):
        kwargs = _with_on_event(kwargs, on_event)
    running = asyncio.ensure_future(arun(*args, **kwargs))
    running.add_done_callback(lambda _: queue.close())
    try:
        while (event := await queue.get()) is not None:
            yield event
        await running
    finally:
        running.cancel()
        await asyncio.wait([running])


def _check_arguments(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    try:
        inspect.signature(arun).bind(*args, **kwargs)
    except TypeError as error:
        how = "it takes keywords: query=, context=, supervisor=, worker="
        raise TypeError(f"{name}(): {error}; {how}") from None


def _on_event(kwargs: Mapping[str, Any]) -> OnEvent | None:
    config = kwargs.get("config")
    return kwargs.get("on_event") or (config.on_event if isinstance(config, RunConfig) else None)


def _with_on_event(kwargs: Mapping[str, Any], on_event: OnEvent) -> dict[str, Any]:
    config = kwargs.get("config")
    # If both have one, arun reports that.
    if isinstance(config, RunConfig) and kwargs.get("on_event") is None:
        kwargs = {**kwargs, "config": replace(config, on_event=None)}
    return {**kwargs, "on_event": on_event}
