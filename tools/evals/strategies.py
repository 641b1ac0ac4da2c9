"""The strategies: ``direct`` makes one call, the others run the engine's loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from anyio import to_thread

from ...engine.api import arun
from ...engine.broker.cache import ResponseCache
from ...engine.broker.prices import window_of
from ...engine.config import RunConfig
from ...engine.errors import TaskError
from ...engine.events import Event, Warned
from ...engine.model_specs import BuiltinSpec, ModelSpec, Role, builtin
from ...engine.result import RunResult
from ...engine.sandbox import SandboxRuntime
from ...engine.trust import Permissions
from ...handlers import HandlerError, ModelHandler, NoAccess, Unavailable, Unreachable
from .config import ExperimentConfig
from .direct import Direct, Run
from .model_calls import Note, ignore, tokens_of


class CacheFile(NamedTuple):
    """A file of cached answers; ``own`` ignores those of other users."""

    path: Path
    own: bool = False

    def store(self) -> ResponseCache:
        """Return the cache, not open yet."""
        return ResponseCache(self.path, own=self.own)


@dataclass(frozen=True, slots=True)
class Loop:
    """Answers questions by runs of the engine's loop."""

    config: RunConfig
    supervisor: ModelHandler
    worker: ModelHandler | None
    cache: CacheFile | None
    note: Note = ignore

    async def run(self, query: str, context: object, log_dir: Path) -> Run:
        """Answer one question.

        Raises:
            EngineError, HandlerError: as ``arun``.
        """
        # Each run opens the file by itself: an open cache belongs to one run.
        cache = self.config.cache if self.cache is None else self.cache.store()
        result = await arun(
            query=query,
            context=context,
            supervisor=self.supervisor,
            worker=self.worker,
            config=replace(self.config, cache=cache, log_dir=log_dir, on_event=self._show),
        )
        if result.stop_reason == "worker_failed":
            raise _dead_worker(result)
        return Run(
            result.answer,
            result.stop_reason,
            result.iterations,
            result.run_id,
            tokens_of(result.supervisor_usage, result.supervisor),
            tokens_of(result.worker_usage, result.worker),
            result.unstored_answers,
        )

    def _show(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.note(event.text)


def _dead_worker(result: RunResult) -> HandlerError:
    # A guess is no measurement: the example has no score.
    why = result.failure or ""
    if "no_access" in result.failed_calls:
        return NoAccess(why)
    return Unreachable(why) if "unreachable" in result.failed_calls else Unavailable(why)


@asynccontextmanager
async def open_strategy(
    config: ExperimentConfig, cache: CacheFile | None, permissions: Permissions, note: Note = ignore
) -> AsyncGenerator[Loop | Direct]:
    """Open the strategy, with the models that its examples share.

    Raises:
        TaskError: a setting is wrong.
        SandboxUnavailable: the isolation is not available here.
    """
    assert config.supervisor is not None
    async with AsyncExitStack() as stack:
        if config.strategy == "direct":
            handler = await stack.enter_async_context(_direct_model(config, permissions))
            window = await _window(config, handler)
            store = await stack.enter_async_context(cache.store()) if cache else None
            limits = config.limits
            yield Direct(handler, window, limits, store, config.cache_sampled, limits.log_bytes, note)
            return
        run_config = config.run_config()
        supervisor = _handler(config.supervisor, "supervisor", config, permissions)
        await stack.enter_async_context(supervisor)
        worker = None
        if config.worker is not None:
            worker = _handler(config.worker, "worker", config, permissions)
            await stack.enter_async_context(worker)
        # One zygote for all examples: each sandbox is a fork of it.
        await stack.enter_async_context(SandboxRuntime(config.sandbox))
        yield Loop(run_config, supervisor, worker, cache, note)


def judge_handler(config: ExperimentConfig, permissions: Permissions) -> ModelHandler | None:
    """Return the judge's handler, not open yet, if there is a judge.

    Raises:
        TaskError: it cannot be built.
    """
    if config.judge is None or config.judge == "none":
        return None
    return _handler(config.judge, "supervisor", config, permissions)


def _handler(spec: ModelSpec, role: Role, config: ExperimentConfig, permissions: Permissions) -> ModelHandler:
    return spec.build(role, Path(), config.limits.worker_ctx_k, permissions)


def _direct_model(config: ExperimentConfig, permissions: Permissions) -> ModelHandler:
    assert config.supervisor is not None
    # The builtin supervisor can only write code, so the builtin worker answers instead.
    if isinstance(config.supervisor, BuiltinSpec):
        return builtin("worker", config.limits.worker_ctx_k)
    return _handler(config.supervisor, "supervisor", config, permissions)


async def _window(config: ExperimentConfig, handler: ModelHandler) -> int | None:
    if config.window is not None or isinstance(config.supervisor, BuiltinSpec):
        return config.window
    # In a thread: the first lookup reads the price table from disk.
    window = await to_thread.run_sync(window_of, handler)
    if window is None:
        raise TaskError(
            f"strategy direct: the window of {handler.model} is not known; set it with --window, "
            "or as `window` of the model"
        )
    return window
