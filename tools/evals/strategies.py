"""The strategies: how an example is answered. ``supervisor``, ``no-worker`` and ``builtin`` are runs of the loop, ``direct`` a
call.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from anyio import to_thread

from ...engine.api import arun
from ...engine.broker.cache import ResponseCache
from ...engine.broker.prices import window_of
from ...engine.errors import TaskError
from ...engine.model_specs import BuiltinSpec, ModelSpec, Role, builtin
from ...engine.sandbox import SandboxRuntime
from ...engine.supervisor.prompts import Prompts
from ...engine.trust import Permissions
from ...handlers import ModelHandler
from .calls import tokens_of
from .config import ExperimentConfig
from .direct import Direct, Run


class CacheFile(NamedTuple):
    """A file of answers. ``own``: those of other users are passed over, because this user did not name the file."""

    path: Path
    own: bool = False

    def store(self) -> ResponseCache:
        """Return the cache, not open yet."""
        return ResponseCache(self.path, own=self.own)


@dataclass(frozen=True, slots=True)
class Loop:
    """Runs of the engine's loop, with its sandbox."""

    config: ExperimentConfig
    supervisor: ModelHandler
    worker: ModelHandler | None
    cache: CacheFile | Literal["off", "run"]
    prompts: Prompts

    async def run(self, query: str, context: object, log_dir: Path) -> Run:
        """One question.

        Raises:
            EngineError, HandlerError: as ``arun``.
        """
        limits = self.config.limits
        result = await arun(
            query=query,
            context=context,
            supervisor=self.supervisor,
            worker=self.worker,
            max_iterations=limits.max_iterations,
            log_dir=log_dir,
            output_limit=limits.output_limit,
            worker_ctx_k=limits.worker_ctx_k,
            sandbox=self.config.sandbox,
            limits=limits,
            cache=self.cache if isinstance(self.cache, str) else self.cache.store(),
            cache_sampled=self.config.cache_sampled,
            cache_counts=True,
            prompts=self.prompts,
        )
        return Run(
            result.answer,
            result.stop_reason,
            result.iterations,
            result.run_id,
            tokens_of(result.supervisor_usage, result.supervisor),
            tokens_of(result.worker_usage, result.worker),
        )


async def open_strategy(
    config: ExperimentConfig, cache: CacheFile | None, permissions: Permissions, stack: AsyncExitStack
) -> Loop | Direct:
    """What answers the examples. Models and, for the loop, the sandboxes' zygote stay open as long as the stack.

    Args:
        config: with its models filled in.
        cache: the file of answers; None keeps none.
        permissions: which keys the models get.
        stack: what to close in the end.

    Raises:
        TaskError: a setting cannot be had; nothing was spent.
        SandboxUnavailable: the isolation cannot be had here; nothing was spent.
    """
    assert config.supervisor is not None
    if config.strategy == "direct":
        handler = await _entered(_direct_model(config, permissions), stack)
        window = await _window(config, handler)
        store = await open_cache(cache, stack)
        return Direct(handler, window, config.limits, store, config.cache_sampled)
    prompts = Prompts.from_directory(config.prompts_dir) if config.prompts_dir else Prompts()
    supervisor = await _entered(build(config.supervisor, "supervisor", config, permissions), stack)
    worker = None
    if config.worker is not None:
        worker = await _entered(build(config.worker, "worker", config, permissions), stack)
    await stack.enter_async_context(SandboxRuntime(config.sandbox))
    kept: CacheFile | Literal["off", "run"] = "off" if config.cache == "off" else cache or "run"
    return Loop(config, supervisor, worker, kept, prompts)


async def open_cache(file: CacheFile | None, stack: AsyncExitStack) -> ResponseCache | None:
    """The answers of a file."""
    return None if file is None else await stack.enter_async_context(file.store())


async def open_judge(
    config: ExperimentConfig, permissions: Permissions, stack: AsyncExitStack
) -> ModelHandler | None:
    """The judge, where the experiment has one."""
    if config.judge is None or config.judge == "none":
        return None
    return await _entered(build(config.judge, "supervisor", config, permissions), stack)


def build(spec: ModelSpec, role: Role, config: ExperimentConfig, permissions: Permissions) -> ModelHandler:
    """A specification's handler.

    Raises:
        TaskError: it cannot be.
    """
    return spec.build(role, Path(), config.limits.worker_ctx_k, permissions)


def _direct_model(config: ExperimentConfig, permissions: Permissions) -> ModelHandler:
    """The builtin supervisor writes code and nothing else: the builtin worker stands in for it."""
    assert config.supervisor is not None
    if isinstance(config.supervisor, BuiltinSpec):
        return builtin("worker", config.limits.worker_ctx_k)
    return build(config.supervisor, "supervisor", config, permissions)


async def _window(config: ExperimentConfig, handler: ModelHandler) -> int | None:
    if config.window is not None or isinstance(config.supervisor, BuiltinSpec):
        return config.window
    window = await to_thread.run_sync(window_of, handler)
    if window is None:
        raise TaskError(
            f"strategy direct: nobody knows the window of {handler.model}; say it with --window, or as `window` of the model"
        )
    return window


async def _entered(handler: ModelHandler, stack: AsyncExitStack) -> ModelHandler:
    return await stack.enter_async_context(handler)
