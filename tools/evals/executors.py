"""Executors: run an example in this process, or as a task of a Ray cluster (extra ``ray``)."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import sys
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

from anyio import to_thread

from ...engine.broker.cache import ResponseCache
from ...engine.errors import CacheError, LogError, LogFormatError, SandboxUnavailable, TaskError
from ...engine.runlog.events import Event, ModelCall
from ...engine.runlog.reader import RunLogReader
from ...engine.sandbox.owned_folders import make_owned_folder, sweep
from ...engine.trust import UNBOUND, Permissions
from ...handlers import ModelHandler, NoAccess, Unreachable
from ...sandbox_image.text import escape_surrogates
from ...tasks.base import Example, Score, Task, TaskDataError
from .config import ExperimentConfig
from .contexts import Contexts
from .direct import Direct, Run, as_text
from .model_calls import JudgeHealth, Note, ignore, open_judge
from .node_logs import read_logs, write_logs
from .records import Failure, Record, Tokens
from .strategies import CacheFile, Loop, judge_handler, open_strategy

# Errors that every other example would meet as well: they stop the experiment.
FATAL = (TaskError, TaskDataError, SandboxUnavailable, LogError, CacheError, NoAccess, Unreachable)

_NODE_RETRIES = 3
# With the value 0, Ray listens on 127.0.0.1 alone, on every system. Without it, Ray replaces that address
# by the machine's own, even one that is passed to init(), and listens on all interfaces.
_LOCALHOST_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

# A node's reply: the record as JSON if the example ended, a fatal error's name and arguments, the logs,
# and how many paid answers its cache could not keep.
Reply = tuple[str | None, tuple[str, tuple[str, ...]] | None, dict[str, bytes], int]


@dataclass(frozen=True, slots=True)
class Job:
    """An example and its index in the sample. ``answered`` is its record if only the judge is to be asked."""

    index: int
    example: Example
    answered: Record | None = None


@dataclass(frozen=True, slots=True)
class ExampleResult:
    """The record of an example, and the error that stops the experiment, if any.

    ``unstored`` are paid answers that the cache could not keep.
    """

    record: Record
    fatal: Exception | None = None
    unstored: int = 0


class Executor(Protocol):
    """Runs examples, many at once."""

    async def run(self, job: Job, logs: Path) -> ExampleResult:
        """Run an example and write its logs. Its own failure is in its record.

        Raises:
            TaskError, TaskDataError, SandboxUnavailable, LogError, CacheError: no example can run.
            NoAccess, Unreachable: a model is dead for good.
        """
        ...


@asynccontextmanager
async def open_executor(
    config: ExperimentConfig,
    task: Task,
    cache: CacheFile | None,
    permissions: Permissions = UNBOUND,
    note: Note = ignore,
) -> AsyncGenerator[Executor]:
    """Open the executor of the settings, with all that the examples share; ``note`` shows warnings.

    Raises:
        TaskError, SandboxUnavailable, CacheError, NoAccess: no example can run, or there is no Ray cluster.
    """
    if config.executor == "ray":
        # The experiment's cache stays with the driver: nodes do not reach its file.
        opened = RayExecutor.open(config, task, permissions)
    else:
        opened = LocalExecutor.open(config, task, cache, permissions, note)
    async with opened as executor:
        yield executor


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """Runs examples in this process; they share models, a zygote and a judge."""

    config: ExperimentConfig
    task: Task
    strategy: Loop | Direct
    judge: ModelHandler | None
    judge_cache: ResponseCache | None
    note: Note
    contexts: Contexts
    judge_health: JudgeHealth = field(default_factory=JudgeHealth)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        config: ExperimentConfig,
        task: Task,
        cache: CacheFile | None,
        permissions: Permissions,
        note: Note = ignore,
    ) -> AsyncGenerator[Executor]:
        """Open the models and the cache."""
        async with AsyncExitStack() as stack:
            strategy = await stack.enter_async_context(open_strategy(config, cache, permissions, note))
            judge = judge_handler(config, permissions) if task.wants_judge else None
            store = None
            if judge is not None:
                await stack.enter_async_context(judge)
                store = await stack.enter_async_context(cache.store()) if cache else None
            yield cls(config, task, strategy, judge, store, note, Contexts(note))

    async def run(self, job: Job, logs: Path) -> ExampleResult:
        """See ``Executor.run``."""
        started = time.monotonic()
        if job.answered is not None:
            return await self._score(job.example, job.answered.model_copy(update={"error": None}))
        context = await self.contexts.read(self.task, job.example)
        record = _unanswered(self.config, job, context, judge=self.judge is not None)
        try:
            run = await self.strategy.run(job.example.query, context, logs)
        except FATAL:
            raise
        except Exception as error:  # any other error concerns this example alone
            return ExampleResult(_failed(record, error, time.monotonic() - started, **_spent(logs)))
        record = record.model_copy(update=_of_run(run, time.monotonic() - started))
        scored = await self._score(job.example, record)
        return replace(scored, unstored=scored.unstored + run.unstored)

    async def _score(self, example: Example, record: Record) -> ExampleResult:
        async with AsyncExitStack() as stack:
            judge = None
            if self.judge is not None:
                seconds = self.config.limits.call_seconds
                opened = open_judge(self.judge, self.judge_cache, seconds, self.note, self.judge_health)
                judge = await stack.enter_async_context(opened)
            try:
                score = _checked(await self.task.score(example, record.answer, judge))
            except Exception as error:  # a judge's, or any error of a task's own code
                failure = {"error": _failure("score", error), "judge": judge.tokens if judge else Tokens()}
                # The record keeps the answer, which was paid for, even if the experiment stops.
                record = record.model_copy(update=failure | await self._without_verdict(example, record))
                return ExampleResult(record, self._fatal(error))
            update = {"judge": judge.tokens if judge else Tokens(), **_of_score(score, record)}
            unstored = 0 if judge is None else await judge.store_answers()
            return ExampleResult(record.model_copy(update=update), unstored=unstored)

    def _fatal(self, error: Exception) -> Exception | None:
        if self.judge_health.is_dead and not isinstance(error, FATAL):
            return Unreachable(f"the judge answered no call: {error}")
        return error if isinstance(error, FATAL) else None

    async def _without_verdict(self, example: Example, record: Record) -> dict[str, Any]:
        """Return the figures that need no judge. The judge failed, or the task's code that asks it."""
        kept: dict[str, Any] = {}
        if self.judge is not None:
            # A second error is not of interest: the judge's is in the record.
            with contextlib.suppress(Exception):
                kept = _of_score(_checked(await self.task.score(example, record.answer, None)), record)
        return {"metrics": kept.get("metrics", {})} if self.task.judge_decides else kept


@dataclass(frozen=True, slots=True)
class RayExecutor:
    """Runs each example as a Ray task, with models and sandboxes on the task's node."""

    config: ExperimentConfig
    task: Task
    permissions: Permissions
    ray: Any
    remote: Any

    @classmethod
    @asynccontextmanager
    async def open(
        cls, config: ExperimentConfig, task: Task, permissions: Permissions
    ) -> AsyncGenerator[Executor]:
        """Connect to the cluster, or start one on this machine."""
        # Before the import: Ray reads its environment variables as it is imported.
        options = _ray_options(config.ray_address)
        try:
            ray: Any = import_module("ray")
        except ImportError as error:
            raise TaskError(
                f"--executor ray: {error}; install the extra: pip install 'supdist-engine[ray]'"
            ) from error
        # Ray's threads print messages about nodes to stdout, which belongs to the result.
        with contextlib.redirect_stdout(sys.stderr):
            try:
                ray.init(**options)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise TaskError(f"--executor ray: cannot connect to a cluster: {error}") from error
            try:
                remote = ray.remote(max_retries=_NODE_RETRIES, num_cpus=1)(run_on_node)
                yield cls(config, task, permissions, ray, remote)
            finally:
                ray.shutdown()
                await to_thread.run_sync(sweep, "example")  # of tasks here that ended with it

    async def run(self, job: Job, logs: Path) -> ExampleResult:
        """See ``Executor.run``."""
        started = time.monotonic()
        settings = self.config.model_dump_json()
        # Permissions hold names of variables and no key: each node has the keys in its own environment.
        work = self.remote.remote(settings, self.task, job, version("supdist-engine"), self.permissions)
        try:
            reply: Reply = await work
        except asyncio.CancelledError:
            # Without force, Ray does not reach a task that waits.
            self.ray.cancel(work, force=True)
            raise
        except self.ray.exceptions.RayError as error:
            context = await Contexts(ignore).read(self.task, job.example)
            record = _unanswered(self.config, job, context, judge=self.task.wants_judge)
            return ExampleResult(_failed(record, error, time.monotonic() - started))
        # Ray unpickles the reply: nodes are trusted as the driver is. The driver alone writes the folder, so
        # an example that Ray repeats because its node died is recorded once.
        record_json, error_parts, files, unstored = reply
        if files:
            await to_thread.run_sync(write_logs, logs, files)
        fatal = None if error_parts is None else _rebuilt(*error_parts)
        if record_json is None:
            assert fatal is not None
            raise fatal
        return ExampleResult(Record.model_validate_json(record_json), fatal, unstored)


def run_on_node(
    settings: str, task: Task, job: Job, driver_version: str, permissions: Permissions = UNBOUND
) -> Reply:
    """Run an example on this node. ``settings`` is JSON, ``driver_version`` that of this package."""
    folder = Path(make_owned_folder("example"))
    logs = folder / "logs"
    try:
        if (here := version("supdist-engine")) != driver_version:
            raise TaskError(
                f"node {os.uname().nodename} has supdist-engine {here}, the driver {driver_version}; "
                "install the same version on both"
            )
        config = ExperimentConfig.model_validate_json(settings)
        ended = asyncio.run(_run_one(config, task, job, logs, permissions))
    except FATAL as error:
        return None, _error_parts(error), read_logs(logs), 0
    else:
        fatal = None if ended.fatal is None else _error_parts(ended.fatal)
        return ended.record.model_dump_json(), fatal, read_logs(logs), ended.unstored
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _run_one(
    config: ExperimentConfig, task: Task, job: Job, logs: Path, permissions: Permissions
) -> ExampleResult:
    # A file that the user names is a file of this node.
    cache = None if config.cache in ("off", "experiment") else CacheFile(Path(config.cache))
    async with LocalExecutor.open(config, task, cache, permissions) as executor:
        return await executor.run(job, logs)


def _ray_options(address: str | None) -> dict[str, Any]:
    # "local" starts a cluster on this machine.
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith(("local", "127.")):
        os.environ.setdefault(_LOCALHOST_ONLY, "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    return {"address": address, **({"include_dashboard": False} if address == "local" else {}), **quiet}


def _error_parts(error: Exception) -> tuple[str, tuple[str, ...]]:
    # Its constructor takes two arguments, and no message.
    if isinstance(error, SandboxUnavailable):
        return type(error).__name__, (error.capability, error.remedy)
    return type(error).__name__, (str(error),)


def _rebuilt(name: str, arguments: tuple[str, ...]) -> Exception:
    # An error's class is looked up among these alone.
    known = {kind.__name__: kind for kind in FATAL}
    return known[name](*arguments)


def _unanswered(config: ExperimentConfig, job: Job, context: object, *, judge: bool) -> Record:
    example = job.example
    supervisor, worker, judge_model = config.models
    return Record(
        index=job.index,
        example=example.id,
        document=escape_surrogates(example.document),
        kind=escape_surrogates(example.kind),
        strategy=config.strategy,
        query=escape_surrogates(example.query),
        references=[escape_surrogates(reference) for reference in example.references],
        answer=None,
        score=None,
        correct=None,
        steps=0,
        stop_reason=None,
        context_chars=len(as_text(context)),
        supervisor_model=supervisor,
        worker_model=worker,
        judge_model=judge_model if judge else "",
        seconds=0.0,
    )


def _failed(record: Record, error: Exception, seconds: float, **spent: object) -> Record:
    return record.model_copy(update={**spent, "seconds": seconds, "error": _failure("run", error)})


def _failure(stage: Literal["run", "score"], error: Exception) -> Failure:
    return Failure(stage=stage, type=type(error).__name__, message=escape_surrogates(str(error)))


def _of_run(run: Run, seconds: float) -> dict[str, object]:
    return {
        "answer": None if run.answer is None else escape_surrogates(run.answer),
        "steps": run.steps,
        "stop_reason": run.stop_reason,
        "supervisor": run.supervisor,
        "worker": run.worker,
        "seconds": seconds,
        "run_id": run.run_id,
    }


def _of_score(score: Score, record: Record) -> dict[str, Any]:
    return {
        "score": score.value,
        "correct": score.correct,
        "metrics": dict(score.metrics),
        "kind": escape_surrogates(score.kind) or record.kind,
        "note": escape_surrogates(score.note),
    }


def _checked(score: Score) -> Score:
    for name, value in {"value": score.value, **score.metrics}.items():
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise ValueError(f"the task's score has {name} = {value}; it must be from 0 to 1")
    return score


def _spent(logs: Path) -> dict[str, object]:
    # An attempt that failed has no result; its logs say what it cost.
    log = RunLogReader(logs)
    events = _readable(log.supervisor())
    return {
        "run_id": events[0].run_id if events else "",
        "steps": max((event.step for event in events), default=0),
        "supervisor": _tokens(events),
        "worker": _tokens(_readable(log.worker())),
    }


def _readable(events: Iterable[Event]) -> list[Event]:
    found: list[Event] = []
    # The record of a failed attempt counts what its log says up to a broken line.
    with contextlib.suppress(LogFormatError):
        found.extend(events)
    return found


def _tokens(events: Iterable[Event]) -> Tokens:
    calls = [event for event in events if isinstance(event, ModelCall) and event.response is not None]
    costs = [call.cost_usd for call in calls if call.cost_usd is not None]
    return Tokens(
        calls=sum(call.usage.calls for call in calls),
        input=sum(call.usage.input_tokens for call in calls),
        output=sum(call.usage.output_tokens for call in calls),
        cached=sum(call.cached for call in calls),
        cost_usd=round(sum(costs), 9) if len(costs) == len(calls) else None,
    )
