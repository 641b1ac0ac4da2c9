"""Where examples are run: one at a time for whoever asks, with all that it takes kept open between them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from anyio import to_thread

from ...engine.errors import CacheError, LogError, SandboxUnavailable, TaskError
from ...engine.trust import UNBOUND, Permissions
from ...handlers import NoAccess
from ...sandbox_image.text import escape_surrogates
from ...tasks.base import Example, Score, Task, TaskDataError
from .calls import opened_judge
from .config import ExperimentConfig
from .direct import Run, as_text
from .folder import log_events
from .records import Failure, Record, Tokens
from .strategies import CacheFile, open_cache, open_judge, open_strategy

FATAL = (TaskError, TaskDataError, SandboxUnavailable, LogError, CacheError, NoAccess)
"""What would befall the other examples as well: going on would spend money, or hours, on nothing."""


@dataclass(frozen=True, slots=True)
class Job:
    """An example to run.

    Attributes:
        index: its place in the sample.
        example: the example.
        answered: its record, where it has an answer that was paid for and waits for its judge.
    """

    index: int
    example: Example
    answered: Record | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """An example that ended; ``fatal`` is why no other should be begun."""

    record: Record
    fatal: Exception | None = None


class Executor(Protocol):
    """Runs examples, many at once. Open within ``async with``.

    Raises:
        TaskError, TaskDataError, SandboxUnavailable, LogError, CacheError, NoAccess: by both methods: nothing more
            can be run. The example has not ended.
    """

    async def __aenter__(self) -> Executor:
        """Open what the examples share."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        ...

    async def run(self, job: Job, logs: Path) -> Ended:
        """Run an example, with its logs in a folder that is not there yet. Its own failure is in its record."""
        ...


class LocalExecutor:
    """In this process, over models and a zygote that all examples share. See ``Executor``."""

    def __init__(
        self,
        config: ExperimentConfig,
        task: Task,
        cache: CacheFile | None,
        permissions: Permissions = UNBOUND,
    ) -> None:
        """Nothing is opened yet. ``cache`` is the file of answers; None keeps none."""
        self._config = config
        self._task = task
        self._cache = cache
        self._permissions = permissions
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> LocalExecutor:
        async with AsyncExitStack() as stack:
            self._strategy = await open_strategy(self._config, self._cache, self._permissions, stack)
            self._judge = None
            if self._task.wants_judge:
                self._judge = await open_judge(self._config, self._permissions, stack)
            self._store = await open_cache(self._cache, stack) if self._judge is not None else None
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def run(self, job: Job, logs: Path) -> Ended:
        """See ``Executor.run``."""
        started = time.monotonic()
        if job.answered is not None:
            return await self._score(job.example, job.answered.model_copy(update={"error": None}))
        context = await to_thread.run_sync(self._task.context, job.example)
        record = unanswered(self._config, job, context, judge=self._judge is not None)
        try:
            run = await self._strategy.run(job.example.query, context, logs)
        except FATAL:
            raise
        except Exception as error:  # whatever it is, it is this example's alone
            seconds = time.monotonic() - started
            failed = {**_spent(logs), "seconds": seconds, "error": failure("run", error)}
            return Ended(record.model_copy(update=failed))
        record = record.model_copy(update=_of_run(run, time.monotonic() - started))
        return await self._score(job.example, record)

    async def _score(self, example: Example, record: Record) -> Ended:
        async with AsyncExitStack() as stack:
            judge = None
            if self._judge is not None:
                seconds = self._config.limits.call_seconds
                judge = await stack.enter_async_context(opened_judge(self._judge, self._store, seconds))
            try:
                score = _checked(await self._task.score(example, record.answer, judge))
            except Exception as error:  # of a judge, or of a task that somebody else wrote
                failed = {"error": failure("score", error), "judge": judge.tokens if judge else Tokens()}
                fatal = error if isinstance(error, FATAL) else None
                return Ended(record.model_copy(update=failed), fatal)
            found = {"judge": judge.tokens if judge else Tokens(), **_of_score(score, record)}
            return Ended(record.model_copy(update=found))


def unanswered(config: ExperimentConfig, job: Job, context: object, *, judge: bool) -> Record:
    """An example's record before it is run; ``judge`` is whether one will be asked."""
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


def _of_score(score: Score, record: Record) -> dict[str, object]:
    return {
        "score": score.value,
        "correct": score.correct,
        "metrics": dict(score.metrics),
        "kind": escape_surrogates(score.kind) or record.kind,
        "note": escape_surrogates(score.note),
    }


def _checked(score: Score) -> Score:
    """A score that a table can be made of.

    Raises:
        ValueError: it is not from 0 to 1.
    """
    for name, value in {"value": score.value, **score.metrics}.items():
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise ValueError(f"the task's score has {name} = {value}; it must be from 0 to 1")
    return score


def failure(stage: Literal["run", "score"], error: Exception) -> Failure:
    """An error, as it is recorded."""
    return Failure(stage=stage, type=type(error).__name__, message=escape_surrogates(str(error)))


def _spent(logs: Path) -> dict[str, object]:
    """What an attempt took that failed, from its logs."""
    events = list(log_events(logs, "supervisor"))
    return {
        "run_id": events[0].get("run_id", "") if events else "",
        "steps": max((event.get("step", 0) for event in events), default=0),
        "supervisor": _paid(events),
        "worker": _paid(log_events(logs, "worker")),
    }


def _paid(events: Iterable[dict[str, Any]]) -> Tokens:
    calls = [event for event in events if "usage" in event and "response" in event]
    costs = [event["cost_usd"] for event in calls]
    return Tokens(
        calls=sum(event["usage"]["calls"] for event in calls),
        input=sum(event["usage"]["input_tokens"] for event in calls),
        output=sum(event["usage"]["output_tokens"] for event in calls),
        cached=sum(event["cached"] for event in calls),
        cost_usd=None if None in costs else round(sum(costs), 9),
    )
